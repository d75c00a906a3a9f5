"""What is known of each training sample: its label, or its value in a column."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trak_lightning.errors import DataError
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.base import Array

METHODS = {"whatif": "what_if(name).remove(positions)", "select": "select(budget, name, groups=…)"}
"""What a command is in Python."""


def labels_of(command: str, run_dir: str) -> tuple[Array, list[str]]:
    """Return the class of every training sample, integers (n,), and the names of the classes 0, 1, …

    Where the data has no names, these are the numbers.

    Raises:
        DataError: the task has no classes.
    """
    from trak_lightning.cli.job import Job
    from trak_lightning.tasks.base import batch_of

    RunDirectory(run_dir).require_config(f"{METHODS[command]} of its TRAK object, with arrays of your own")
    job = Job(command, [run_dir])
    job.require_same_data(job.settings.train_split)
    data, task, found = job.train_data, job.parts.task, []
    for start in range(0, len(data), data.batch_size):
        batch = range(start, min(start + data.batch_size, len(data)))
        with batch_of(len(batch)):
            labels = task.class_labels(data.batch(batch))
        if labels is None:
            raise DataError(f"task {type(task).__name__} has no classes; give positions or a column instead of labels")
        found.append(labels.numpy())
    labels = np.concatenate(found)
    names = [str(name) for name in job.class_names or ()]
    return labels, [*names, *map(str, range(len(names), labels.max() + 1))]


def column_of(command: str, run_dir: str, column: str) -> Array:
    """Return what every training sample has in a column, or in the one of its features that `feature_names` of the DataModule calls so:
    text (n,), such as ``3`` of a tensor that holds one number.

    Raises:
        DataError: samples have no columns, or not this one, or it holds more than one value per sample.
    """
    from trak_lightning.chat.data import ChatDataset
    from trak_lightning.cli.job import Job

    RunDirectory(run_dir).require_config(f"{METHODS[command]} of its TRAK object, with arrays of your own")
    job = Job(command, [run_dir])
    job.require_same_data(job.settings.train_split)
    dataset = job.train_data.dataset
    rows = dataset.records.rows if isinstance(dataset, ChatDataset) else dataset  # which encodes some columns alone
    sample, names = rows[0], [str(name) for name in getattr(job.datamodule, "feature_names", None) or ()]
    if column in names and vector_of(sample, len(names)) is not None:
        return np.array([feature_of(rows[i], column, names) for i in range(len(dataset))])
    if column not in _columns(sample):
        known = ", ".join(map(str, _columns(sample))) or f"none: a sample is a {type(sample).__name__}"
        raise DataError(f"samples of {type(dataset).__name__} have no column {column!r}; their columns are {known}")
    return np.array([text_of(_columns(rows[i]).get(column), column) for i in range(len(dataset))])


def _columns(sample: Any) -> Mapping[Any, Any]:
    """The entries of a mapping, or the public attributes of an object such as a graph."""
    if isinstance(sample, Mapping):
        return sample
    return {name: value for name, value in getattr(sample, "__dict__", {}).items() if not name.startswith("_")}


def vector_of(sample: Any, size: int) -> Any:
    """The entry of a sample, or the sample, that is a vector of `size` features; None if there is none."""
    if isinstance(sample, (Mapping, tuple, list)):
        entries = sample.values() if isinstance(sample, Mapping) else sample
        return next((each for each in entries if np.shape(each) == (size,)), None)
    return sample if np.shape(sample) == (size,) else None


def feature_of(sample: Any, column: str, names: Sequence[str]) -> str:
    """Return the text of the feature of that name: ``1`` for 1.0."""
    return f"{float(vector_of(sample, len(names))[names.index(column)]):g}"


def text_of(value: object, column: str) -> str:
    """Return the text that a value of a column is compared by: of a tensor or an array, that of the number in it.

    Raises:
        DataError: it holds several.
    """
    from torch import Tensor, bfloat16

    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy() if value.dtype is not bfloat16 else value.item()
    if isinstance(value, np.ndarray):
        if value.size != 1:
            raise DataError(
                f"column {column!r} holds {value.size} values per sample, of shape {value.shape}; one is needed"
            )
        value = value.reshape(-1)[0]
    return str(value)
