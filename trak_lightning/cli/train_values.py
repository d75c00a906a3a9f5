"""What is known of each training sample: its label, or its value in a column."""

import numpy as np

from trak_lightning.cli.columns import require_column, value_of
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
    """Return what every training sample has in a column, as text (n,); see `value_of`.

    Raises:
        DataError: samples do not have this column, or it holds more than one value per sample.
    """
    from trak_lightning.chat.data import ChatDataset
    from trak_lightning.cli.job import Job

    RunDirectory(run_dir).require_config(f"{METHODS[command]} of its TRAK object, with arrays of your own")
    job = Job(command, [run_dir])
    job.require_same_data(job.settings.train_split)
    dataset = job.train_data.dataset
    rows = dataset.records.rows if isinstance(dataset, ChatDataset) else dataset  # which encodes some columns alone
    names = [str(name) for name in getattr(job.datamodule, "feature_names", None) or ()]
    require_column(rows[0], column, names, dataset)
    return np.array([value_of(rows[i], column, names) for i in range(len(dataset))])
