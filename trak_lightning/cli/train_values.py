"""What is known of each training sample: its label, or its value in a column."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trak_lightning.cli.columns import columns_of, rendered_columns, require_column, value_of
from trak_lightning.errors import DataError, docs_page
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.base import Array

if TYPE_CHECKING:
    from torch import Tensor

    from trak_lightning.cli.job import Job

METHODS = {"whatif": "what_if(name).remove(positions)", "select": "select(budget, name, groups=…)"}
"""What a command is in Python."""

SEVERAL = {"whatif": "--remove_where '{}=1'", "select": "--groups {}"}
"""What a command takes in place of a class where samples have several labels."""

OF_A_TABLE = {
    "whatif": "np.save('rows.npy', (table.age > 60).to_numpy()), and --remove rows.npy",
    "select": "np.save('groups.npy', table.city.to_numpy(str)), and --groups groups.npy",
}
"""How rows are chosen by a table that the samples do not have."""


def labels_of(command: str, run_dir: str) -> tuple[Array, list[str]]:
    """Return the class of every training sample, integers (n,), and the names of the classes 0, 1, …

    Where the data has no names, these are the numbers.

    Raises:
        DataError: the task has no classes.
    """
    job = _job(command, run_dir)
    labels = _of_all(job, job.parts.task.class_labels)
    if labels is None and (answers := _answers(job)) is not None:
        first = next(iter(answers), None)
        how = f"{SEVERAL[command].format(first)}" if first else "name them with class_names of the DataModule"
        raise DataError(f"samples have several labels: {how}")
    if labels is None:
        name = type(job.parts.task).__name__
        raise DataError(f"task {name} has no classes; give positions or a column instead of labels")
    names = [str(name) for name in job.class_names or ()]
    return labels, [*names, *map(str, range(len(names), labels.max() + 1))]


def values_of(command: str, run_dir: str, columns: Sequence[str]) -> list[Array]:
    """Return what every training sample has in each of some columns, as text (n,); see `value_of`. Of a column that ``render`` of the
    DataModule returns, what it returns. Of the name of one of several yes-or-no labels, ``1``, ``0``, or ``None`` if it is not known.

    Raises:
        DataError: samples do not have a column, or it holds more than one value per sample.
    """
    from trak_lightning.chat.data import ChatDataset
    from trak_lightning.report.samples import Samples

    job = _job(command, run_dir)
    dataset = job.train_data.dataset
    rows = dataset.records.rows if isinstance(dataset, ChatDataset) else dataset  # which encodes some columns alone
    names = [str(name) for name in getattr(job.datamodule, "feature_names", None) or ()]
    render = getattr(job.datamodule, "render", None)
    shown = Samples(dataset, render=render)
    first = None if render is None else shown.rendered(0)
    answers = _answers(job) or {}

    def values(column: str) -> list[str]:
        if column in rendered_columns(first):
            return [value_of(shown.rendered(i), column) for i in range(len(dataset))]
        if column in answers and column not in columns_of(rows[0]):
            return answers[column]
        require_column(rows[0], column, names, dataset, rendered=first, others=list(answers), remedy=_remedy(command))
        return [value_of(rows[i], column, names) for i in range(len(dataset))]

    return [np.array(values(column)) for column in columns]


def _job(command: str, run_dir: str) -> "Job":
    from trak_lightning.cli.job import Job

    RunDirectory(run_dir).require_config(f"{METHODS[command]} of its TRAK object, with arrays of your own")
    job = Job(command, [run_dir])
    job.require_same_data(job.settings.train_split)
    return job


def _of_all(job: "Job", labels_of: Callable[[Any], "Tensor | None"]) -> Array | None:
    """What a function finds in every batch of the training set, joined, if it finds anything."""
    from trak_lightning.tasks.base import batch_of

    data, found = job.train_data, []
    for start in range(0, len(data), data.batch_size):
        batch = range(start, min(start + data.batch_size, len(data)))
        with batch_of(len(batch)):
            labels = labels_of(data.batch(batch))
        if labels is None:
            return None
        found.append(labels.numpy())
    joined: Array = np.concatenate(found)
    return joined


def _answers(job: "Job") -> dict[str, list[str]] | None:
    """What every sample has of each yes-or-no label that has a name; None if samples do not have several such labels."""
    from trak_lightning.tasks.binary import Multilabel

    task = job.parts.task
    labels = _of_all(job, task.right_answers) if isinstance(task, Multilabel) else None
    if labels is None:
        return None
    names = list(map(str, job.class_names or ()))
    columns = ([str(each) if each >= 0 else "None" for each in column] for column in labels.T.tolist())
    return dict(zip(names, columns, strict=True)) if len(names) == labels.shape[1] else {}


def _remedy(command: str) -> str:
    return (
        ". Other columns, or these in other units, are those of the dict that a method render(self, sample) of your DataModule returns, such as "
        f"{{'age': …, 'sex': 'female'}}; or use a table of your own in the same order: {OF_A_TABLE[command]} "
        f"({docs_page('recipes', 'Tables')})"
    )
