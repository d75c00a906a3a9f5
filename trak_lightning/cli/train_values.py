"""What is known of each training sample: its label, or its value in a column."""

from collections.abc import Sequence

import numpy as np

from trak_lightning.cli.columns import rendered_columns, require_column, value_of
from trak_lightning.errors import DataError, docs_page
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.base import Array

METHODS = {"whatif": "what_if(name).remove(positions)", "select": "select(budget, name, groups=…)"}
"""What a command is in Python."""

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


def values_of(command: str, run_dir: str, columns: Sequence[str]) -> list[Array]:
    """Return what every training sample has in each of some columns, as text (n,); see `value_of`. Of a column that ``render`` of the
    DataModule returns, what it returns.

    Raises:
        DataError: samples do not have a column, or it holds more than one value per sample.
    """
    from trak_lightning.chat.data import ChatDataset
    from trak_lightning.cli.job import Job
    from trak_lightning.report.samples import Samples

    RunDirectory(run_dir).require_config(f"{METHODS[command]} of its TRAK object, with arrays of your own")
    job = Job(command, [run_dir])
    job.require_same_data(job.settings.train_split)
    dataset = job.train_data.dataset
    rows = dataset.records.rows if isinstance(dataset, ChatDataset) else dataset  # which encodes some columns alone
    names = [str(name) for name in getattr(job.datamodule, "feature_names", None) or ()]
    render = getattr(job.datamodule, "render", None)
    shown = Samples(dataset, render=render)
    first = None if render is None else shown.rendered(0)

    def values(column: str) -> list[str]:
        if column in rendered_columns(first):
            return [value_of(shown.rendered(i), column) for i in range(len(dataset))]
        require_column(rows[0], column, names, dataset, rendered=first, remedy=_remedy(command))
        return [value_of(rows[i], column, names) for i in range(len(dataset))]

    return [np.array(values(column)) for column in columns]


def _remedy(command: str) -> str:
    return (
        ". Other columns, or these in other units, are those of the dict that a method render(self, sample) of your DataModule returns, such as "
        f"{{'age': …, 'sex': 'female'}}; or use a table of your own in the same order: {OF_A_TABLE[command]} "
        f"({docs_page('recipes', 'Tables')})"
    )
