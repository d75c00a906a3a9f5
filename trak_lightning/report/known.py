"""What the data, the task and the model say about samples: the names of classes, where labels are, a tokenizer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from trak_lightning.data.dataset import AttributionData
from trak_lightning.errors import DataError
from trak_lightning.report.samples import Samples
from trak_lightning.report.turns import decoder
from trak_lightning.report.values import plain_label
from trak_lightning.tasks.base import Task, batch_of
from trak_lightning.tasks.fields import LABEL_NAMES, Key, is_text
from trak_lightning.tasks.segmentation import Segmentation
from trak_lightning.tasks.supervised import SupervisedTask

MOST_LAYERS = 8
"""How many datasets inside each other are asked for names: an object may answer to any attribute, without end."""


def samples_of(
    data: AttributionData,
    *,
    render: Callable[[Any], Any] | None = None,
    class_names: Sequence[str] | None = None,
    task: Any = None,
    tokenizer: Any = None,
    model: Any = None,
    number_of: Callable[[int], float] | None = None,
) -> Samples:
    """Show samples with what is known about them: by the DataModule of `data`, if it has one, their dataset and collate function, and the
    arguments, which are as for `write_report`, and `number_of` as for `Samples`."""
    collate = data.collate_fn
    bound = getattr(collate, "keywords", {}).get("tokenizer")  # of a partial
    owners = (*_owners(data), collate, getattr(collate, "__self__", None))
    tokenizers = (tokenizer, bound, *(getattr(owner, "tokenizer", None) for owner in owners))
    found = next((each for each in tokenizers if decoder(each) is not None), None)
    return Samples(
        data.dataset,
        render=render or getattr(data.hooks, "render", None),
        decode=decoder(found),
        class_names=class_names or class_names_of(data, task=task, model=model),
        feature_names=feature_names_of(data),
        label_keys=_label_keys(task),
        label_of=partial(_label_in_batch, data, task),
        class_of=partial(_class_in_batch, data, task),
        number_of=number_of,
        tokenizer=found,
        input_keys=_input_keys(getattr(task, "inputs", None)),
        unread_keys=_unread_keys(data, task),
        ignore_index=task.ignore_index if isinstance(task, Segmentation) else None,
        grid_of=partial(_grid, data, task) if isinstance(task, Segmentation) else lambda index: (),
    )


def samples_of_both(
    train: AttributionData,
    targets: AttributionData,
    *,
    task: Any,
    model: Any,
    numbers: tuple[Callable[[int], float] | None, Callable[[int], float] | None] = (None, None),
    class_names: Sequence[str] | None = None,
    tokenizer: Any = None,
    render: Callable[[Any], Any] | None = None,
) -> tuple[Samples, Samples]:
    """Show training samples and targets, which have the same classes and tokens, so that what one of them knows holds for both.

    Args: as for `samples_of`; `numbers` are the two ``number_of``.
    """
    own = (class_names_of(data, task=task, model=model) for data in (train, targets))
    names = class_names or next(filter(None, own), None)
    show = partial(samples_of, render=render, class_names=names, task=task, model=model)
    first = show(train, number_of=numbers[0], tokenizer=tokenizer)
    second = show(targets, number_of=numbers[1], tokenizer=tokenizer)
    if second.tokenizer is None and first.tokenizer is not None:
        second = show(targets, number_of=numbers[1], tokenizer=first.tokenizer)
    return first, second


def feature_names_of(data: AttributionData) -> Sequence[str] | None:
    """Return the names of the entries of vectors: ``feature_names`` of the DataModule or the dataset; None if there are none."""
    found = next((names for each in _owners(data) if (names := getattr(each, "feature_names", None)) is not None), None)
    return None if found is None else [str(name) for name in found]


def class_names_of(data: AttributionData, *, task: Any = None, model: Any = None) -> Sequence[str] | None:
    """Return the names of the classes 0, 1, …: ``class_names`` of the DataModule, ``classes`` of the dataset, the ``ClassLabel`` of a
    dataset of `datasets`, or ``id2label`` of a model of `transformers`, which a module of yours may hold. None if there are none."""
    found = getattr(data.hooks, "class_names", None)
    for layer in _layers(data.dataset):
        found = found or getattr(layer, "classes", None)
        features = getattr(layer, "features", None)
        if not found and isinstance(features, Mapping):
            columns = (features.get(key) for key in _label_keys(task))
            found = next((names for each in columns if (names := getattr(each, "names", None))), None)
    models = (model, *getattr(model, "children", tuple)())
    return found or next((names for each in models if (names := _names_of_config(each))), None)


def _owners(data: AttributionData) -> tuple[Any, ...]:
    """What may know more of samples than they hold, the nearest to the user first."""
    return (data.hooks, *_layers(data.dataset))


def _layers(dataset: Any) -> Iterator[Any]:
    """A dataset, and those inside it, such as the one that a `torch.utils.data.Subset` is a part of."""
    for _ in range(MOST_LAYERS):
        if dataset is None:
            return
        yield dataset
        dataset = getattr(dataset, "dataset", None)


def _names_of_config(model: Any) -> list[str] | None:
    """The names in ``config.id2label``, unless they are those that `transformers` makes up."""
    ids = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(ids, Mapping) or sorted(ids) != list(range(len(ids))):
        return None
    names = [str(ids[number]) for number in range(len(ids))]
    return None if names == [f"LABEL_{number}" for number in range(len(ids))] else names


def _label_keys(task: Any) -> list[Key]:
    """The keys and positions under which a sample may have its label, that of the task first."""
    keys = (getattr(task, "labels", None), *getattr(task, "label_names", LABEL_NAMES))
    return [key for key in keys if isinstance(key, (str, int))]


def _label_in_batch(data: Any, task: Any, index: int) -> Any:
    """The label that the task finds in a batch of this sample, such as a graph; None if it finds no single one."""
    if not isinstance(task, Task):
        return None
    try:
        with batch_of(1):
            batch = data.batch([index])
            found = task.class_labels(batch)
            found = task.targets(batch) if found is None and isinstance(task, SupervisedTask) else found
    except Exception:  # the user's code, which may refuse a batch of one; the rest of the sample is shown
        return None
    return plain_label(found) if found is not None and found.numel() == 1 else None


def _class_in_batch(data: Any, task: Any, index: int) -> int | None:
    """The class that the task finds in a batch of this sample; None if it finds no single one."""
    if not isinstance(task, Task):
        return None
    try:
        with batch_of(1):
            found = task.class_labels(data.batch([index]))
    except Exception:  # as in `_label_in_batch`
        return None
    return int(found) if found is not None and found.numel() == 1 else None


def _grid(data: Any, task: Segmentation, index: int) -> tuple[int, ...]:
    """Height and width of the labels of a sample, (B, H, W) or (B, 1, H, W); () of others, such as volumes, or one-hot ones."""
    with batch_of(1):
        shape = tuple(task.targets(data.batch([index])).shape)
    return shape[-2:] if len(shape) == 3 or (len(shape) == 4 and shape[1] == 1) else ()


def _unread_keys(data: AttributionData, task: Any) -> set[str]:
    """The keys of text that is still text in a batch: a model is called with its tensors, if the task names nothing else."""
    if not isinstance(task, SupervisedTask) or task.inputs is not None:
        return set()
    try:
        batch = data.batch([0])
    except DataError:  # the user's code, which may refuse a batch of one
        return set()
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    return {str(key) for key, value in inputs.items() if is_text(value)} if isinstance(inputs, Mapping) else set()


def _input_keys(inputs: Any) -> set[str]:
    """The keys of samples that `Inputs` names; none if it names positions, or the whole batch."""
    keys = inputs.values() if isinstance(inputs, Mapping) else [inputs] if isinstance(inputs, str) else inputs or ()
    named = {key.partition(".")[0] if isinstance(key, str) else "*" for key in keys}
    return set() if "*" in named else named
