"""Tasks with inputs, predictions and labels."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from trak_lightning.errors import DataError
from trak_lightning.tasks.base import Task, current_size
from trak_lightning.tasks.calling import Call
from trak_lightning.tasks.fields import LABEL_NAMES, Inputs, Key, describe, entry, label_key, named_entries, split_batch
from trak_lightning.tasks.state import to_json


class SupervisedTask(Task):
    """A task for models that map inputs to predictions, and batches that hold inputs and labels.

    A batch is a pair (inputs, labels), or has names: a ``dict``, a ``BatchEncoding``, a dataclass. By default labels are
    what has the first of the names `label_names`, such as ``labels`` or ``label``, and the model is called with all
    other tensors by their names. Inputs of a pair may be several, ``((a, b), labels)``. A model returns a tensor; or
    something with ``logits``, as the models of ``transformers`` do; or a tuple, of which the first is used.

    Args:
        inputs: the entries of a batch that the model is called with: one, by name or position, as its only argument; several,
            by their names; or a mapping, argument → entry; or ``*``, the whole batch.
        labels: the entry of a batch that holds the labels; ``labels.age`` is the entry ``age`` of the entry ``labels``.
        outputs: the entry of the model's output that holds the predictions.
    """

    input_names: ClassVar[Sequence[str]] = ()
    """Names of an input that the model may take without its name; tensors that the model has no argument for are then left out."""
    label_names: ClassVar[Sequence[str]] = LABEL_NAMES
    """Names under which labels are looked for, in this order."""

    def __init__(self, inputs: Inputs = None, labels: Key | None = None, outputs: Key | None = None) -> None:
        self.inputs = to_json(inputs, "inputs")
        self.labels = to_json(labels, "labels")
        self.outputs = to_json(outputs, "outputs")

    def predict(self, model: nn.Module, batch: Any, ndim: int = 0) -> Tensor:
        """Compute the model's predictions, (B, …).

        A model that ends in ``.squeeze()`` drops the dimension of a single sample. Predictions of one sample get it back if
        they have less than `ndim` dimensions.

        Raises:
            DataError: the batch or the model's output has no such entry, or the model does not take one.
        """
        call, labels = self._split(batch)
        found = prediction(call.call(model), self.outputs)
        return _with_samples(found, ndim) if found.ndim < ndim and _size(labels) == 1 else found

    def targets(self, batch: Any) -> Tensor:
        """Find the labels in a batch, (B, …)."""
        _, labels = self._split(batch)
        if not isinstance(labels, Tensor):
            text = (
                next((each for each in labels if isinstance(each, str)), None)
                if isinstance(labels, (list, tuple))
                else None
            )
            raise DataError(
                f"labels must be a tensor, got {describe(labels)}. {self._one_of_several(batch, labels)}"
                if text is None
                else f"labels must be numbers, got text such as {text!r}. Map it to 0 … C−1 in the dataset, in the order of the model's "
                "logits: label = classes.index(name)."
            )
        return _with_samples(labels, 1) if labels.ndim == 0 and _size(labels) == 1 else labels

    def _split(self, batch: Any) -> tuple[Call, Any]:
        return split_batch(batch, self.inputs, self.labels, self.input_names, self.label_names)

    def _one_of_several(self, batch: Any, labels: Any) -> str:
        named = named_entries(labels)
        entries: Iterable[tuple[Any, Any]] = () if named is None else named.items()
        if named is None and isinstance(labels, (list, tuple)):
            entries = enumerate(labels)
        name = next((name for name, each in entries if isinstance(each, Tensor)), None)
        if name is None:
            return "Return tensors from the collate function."
        key = label_key(batch, self.label_names) if self.labels is None else self.labels
        return (
            f"Of labels for several tasks, name one, and the output that goes with it: task: {{name: …, labels: {key}.{name}, outputs: …}}. "
            "For the sum of their losses, give a function (model, batch) → loss of each sample, (B,): task: {name: loss, function: …}."
        )


def _size(labels: Any) -> int:
    """The number of samples, as told, or by the labels."""
    told = current_size()
    if told is not None or not isinstance(labels, Tensor):
        return told or 0
    return labels.shape[0] if labels.ndim else 1


def _with_samples(values: Tensor, ndim: int) -> Tensor:
    """Values of one sample, with dimensions of size 1 in front."""
    return values.reshape(*[1] * (ndim - values.ndim), *values.shape)


def prediction(output: Any, key: Key | None = None) -> Tensor:
    """Find the tensor of predictions in what a model returned.

    Raises:
        DataError: there is none; names what there is.
    """
    named = named_entries(output)
    if key is not None:
        found = entry(output, key, "outputs", "the model's output")
    elif named is not None and "logits" in named:
        found = named["logits"]
    elif isinstance(output, (tuple, list)) and output:
        found = output[0]
    else:
        found = output
    if not isinstance(found, Tensor):
        raise DataError(
            f"the model must return a tensor of predictions, or something with logits; it returned {describe(output)}. Say "
            "where they are: task: {name: …, outputs: …}."
        )
    return found
