"""Label and content of samples, for the tables that commands print."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from trak_lightning.errors import DataError
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.display import shortened
from trak_lightning.scoring.scores import Scores

if TYPE_CHECKING:
    from trak_lightning.cli.job import Job
    from trak_lightning.report.samples import Samples

Loaded = TypeVar("Loaded")


def with_targets_of(run: RunDirectory, scores: Scores) -> list[str]:
    """The arguments of a job whose targets are those of `scores`, if the file says which these are."""
    return [str(run.path), *([f"--target_split={scores.target_split}"] if scores.target_split else [])]


def shown_samples(command: str, run: RunDirectory, expected: int) -> "Samples | None":
    """Load the training data of a run's configuration to show its samples.

    Args:
        command: the command that shows them.
        run: the run directory.
        expected: the number of samples that the scores or features are of.

    Returns:
        None if the data cannot be shown; the reason is printed on standard error.
    """
    return _shown(lambda: _samples(_job(command, [str(run.path)]), "train", expected)) if run.config.exists() else None


def shown_ranking(command: str, run: RunDirectory, scores: Scores, what: str, by: int) -> "tuple[Samples | None, str]":
    """Load the samples, ``train`` or ``target`` (`what`), that are ranked by one of the others; and say what that one is: its label
    and text, or the name of a group of targets."""
    if not run.config.exists() or (job := _shown(lambda: _job(command, with_targets_of(run, scores)))) is None:
        return None, ""
    counts = dict(zip(("target", "train"), scores.shape, strict=True))
    samples = _shown(lambda: _samples(job, what, counts[what]))
    other = "target" if what == "train" else "train"
    if other == "target" and scores.grouped:
        names = (getattr(job.datamodule, "combination", None) or [()])[0]
        return samples, names[by] if len(names) == len(scores) else ""
    others = _shown(lambda: _samples(job, other, counts[other]))
    sample = None if others is None else others.show(by)
    return samples, "" if sample is None else ", ".join(filter(None, (sample.label, shortened(sample.line))))


def _job(command: str, arguments: list[str]) -> "Job":
    from trak_lightning.cli.job import Job

    return Job(command, arguments)


def _samples(job: "Job", what: str, expected: int) -> "Samples":
    from trak_lightning.report.samples import samples_of

    train = what == "train"
    data, split = job.train_data if train else job.target_data, getattr(job.settings, f"{what}_split")
    if len(data) != expected:
        raise DataError(f"the data has {len(data)} samples, and the run was made with {expected}")
    job.require_same_data(split)
    return samples_of(data, datamodule=job.datamodule, task=job.parts.task)


def _shown(load: Callable[[], Loaded]) -> Loaded | None:
    try:
        return load()
    except Exception as error:  # a user's data module may raise anything, and the numbers are there
        print(f"samples are not shown: {type(error).__name__}: {error}", file=sys.stderr)
        return None
