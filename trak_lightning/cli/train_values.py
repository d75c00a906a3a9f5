"""What is known of each training sample: its label, or its value in a column."""

from typing import TYPE_CHECKING

from trak_lightning.cli.shown_samples import stored_numbers
from trak_lightning.decisions.columns import Columns, answers_of, of_all
from trak_lightning.errors import DataError, docs_page
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.base import Array

if TYPE_CHECKING:
    from trak_lightning.cli.job import Job

ON_THIS_RUN = {
    "whatif": "what_if(name).remove(trak.where(condition)) of its TRAK object trak, with a condition such as 'label=3'; "
    "--remove rows.npy, positions or a mask of your own, works on this run, too",
    "select": "select(budget, name, groups=…) of its TRAK object; --groups groups.npy, one group per sample, works on this run, too",
}
"""What there is in place of a class or a column where a run was made in Python."""

SEVERAL = {"whatif": "--remove_where '{}=1'", "select": "--groups {}"}
"""What a command takes in place of a class where samples have several labels."""

OF_A_TABLE = {
    "whatif": "np.save('rows.npy', (table.age > 60).to_numpy()), and --remove rows.npy",
    "select": "np.save('groups.npy', table.city.to_numpy(str)), and --groups groups.npy",
}
"""How rows are chosen by a table that the samples do not have."""

OF_A_FILE = {
    "whatif": "give positions of lines, of which the first is 0: --remove 3,17, or --remove rows.npy, a file of positions",
    "select": "give the group of each line: --groups groups.npy, one group per line",
}
"""How lines of a file of conversations are chosen by what they do not say."""

GIVES_WORDS = "a method render(self, sample) of your DataModule that returns a dict, such as {{'{column}': …}}, may have words for them"
"""What gives words to a column of numbers."""

NAMES_CLASSES = "they are classes, which class_names of the DataModule names"
"""What names the classes that a column holds."""


def labels_of(command: str, run_dir: str, train_split: str) -> tuple[Array, list[str]]:
    """Return the class of every training sample of a split, integers (n,), and the names of the classes 0, 1, …

    Where the data has no names, these are the numbers.

    Raises:
        DataError: the task has no classes.
    """
    job = _job(command, run_dir, train_split)
    labels = of_all(job.train_data, job.parts.task.class_labels)
    if labels is None and (answers := _answers(job)) is not None:
        first = next(iter(answers), None)
        how = f"{SEVERAL[command].format(first)}" if first else "name them with class_names of the DataModule"
        raise DataError(f"samples have several labels: {how}")
    if labels is None:
        name = type(job.parts.task).__name__
        raise DataError(f"task {name} has no classes; give positions or a column instead of labels")
    names = [str(name) for name in job.class_names or ()]
    return labels, [*names, *map(str, range(len(names), labels.max() + 1))]


def columns_of_train(command: str, run_dir: str, train_split: str) -> Columns:
    """Return the columns of the training samples of a split."""
    from trak_lightning.chat.data import ChatDataset
    from trak_lightning.report.known import feature_names_of
    from trak_lightning.report.samples import Samples

    job = _job(command, run_dir, train_split)
    dataset = job.train_data.dataset
    if isinstance(dataset, ChatDataset):  # which encodes some columns alone
        records = dataset.records
        return Columns(records.rows, name=f"examples of {records.name}", remedy=_remedy_of_file(command))
    render = getattr(job.datamodule, "render", None)
    return Columns(
        dataset,
        None if render is None else Samples(dataset, render=render).rendered,
        feature_names_of(job.train_data) or (),
        _answers(job) or {},
        stored_numbers(job, job.settings.train_split),
        lambda: of_all(job.train_data, job.parts.task.class_labels),
        list(map(str, job.class_names or ())),
        remedy=_remedy(command),
        gives_words=GIVES_WORDS,
        names_classes=NAMES_CLASSES,
    )


def _job(command: str, run_dir: str, train_split: str) -> "Job":
    from trak_lightning.cli.job import Job

    RunDirectory(run_dir).require_config(ON_THIS_RUN[command])
    job = Job(command, [run_dir, f"--train_split={train_split}"])
    job.require_same_data(job.settings.train_split)
    return job


def _answers(job: "Job") -> dict[str, list[str]] | None:
    return answers_of(job.train_data, job.parts.task, list(map(str, job.class_names or ())))


def _remedy_of_file(command: str) -> str:
    return (
        f". Add it to the lines of the file, where a column that is not encoded changes no row; or {OF_A_FILE[command]}"
    )


def _remedy(command: str) -> str:
    return (
        ". feature_names of the DataModule names the entries of a vector. Other columns, or these in other units, are those of the dict that a method render(self, sample) of your DataModule returns, such as "
        f"{{'age': …, 'sex': 'female'}}; or use a table of your own in the same order: {OF_A_TABLE[command]} "
        f"({docs_page('recipes', 'Tables')})"
    )
