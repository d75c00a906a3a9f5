"""What the tasks with inputs, predictions and labels have in common."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from trak_lightning.errors import DataError
from trak_lightning.tasks.base import Task
from trak_lightning.tasks.fields import Inputs, Key, as_named, describe, field, split


class SupervisedTask(Task):
    """A task for models that map inputs to predictions, and batches that hold inputs and labels.

    A batch is a pair (inputs, labels), or has names: a ``dict``, a ``BatchEncoding``, a dataclass. By default labels are
    what is called ``labels`` or ``label`` (see `trak_lightning.tasks.fields.LABEL_NAMES`), and the model is called with all
    other tensors by their names. A model returns a tensor; or something with ``logits``, as the models of ``transformers``
    do; or a tuple, of which the first is taken.

    Args:
        inputs: which entries of a batch the model is called with: one, by name or position, as its only argument; several,
            by their names; or a mapping, argument → entry.
        labels: the entry of a batch that holds the labels.
        outputs: the entry of the model's output that holds the predictions.
    """

    input_names: ClassVar[Sequence[str]] = ()
    """Entries that are the model's only argument by default, the first that is there."""

    def __init__(self, inputs: Inputs = None, labels: Key | None = None, outputs: Key | None = None) -> None:
        self.inputs = inputs
        self.labels = labels
        self.outputs = outputs

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        """What the model predicts, (B, …).

        Raises:
            DataError: the batch or the model's output has no such entry, or the model does not take one.
        """
        arguments, _ = split(batch, self.inputs, self.labels, self.input_names)
        return prediction(arguments.call(model), self.outputs)

    def targets(self, batch: Any) -> Tensor:
        """The labels in a batch, (B, …)."""
        _, labels = split(batch, self.inputs, self.labels, self.input_names)
        if not isinstance(labels, Tensor):
            raise DataError(
                f"labels must be a tensor, got {type(labels).__name__}. Return tensors from the collate function."
            )
        return labels


def prediction(output: Any, key: Key | None = None) -> Tensor:
    """The tensor of predictions in what a model returned.

    Raises:
        DataError: there is none; names what there is.
    """
    named = as_named(output)
    if key is not None:
        found = field(output, key, "outputs", "the model's output")
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
