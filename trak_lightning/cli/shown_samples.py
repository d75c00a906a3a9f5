"""Label and content of samples, for the tables that commands print."""

import sys
from typing import TYPE_CHECKING

from trak_lightning.errors import DataError
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.scores import Scores

if TYPE_CHECKING:
    from trak_lightning.report.samples import Samples


def with_targets_of(run: RunDirectory, scores: Scores) -> list[str]:
    """The arguments of a job whose targets are those of `scores`, if the file says which these are."""
    return [str(run.path), *([f"--target_split={scores.target_split}"] if scores.target_split else [])]


def shown_samples(
    command: str, run: RunDirectory, what: str, expected: int, scores: Scores | None = None
) -> "Samples | None":
    """Load the data of a run's configuration to show its samples.

    Args:
        command: the command that shows them.
        run: the run directory.
        what: ``train`` or ``target``.
        expected: the number of samples that the scores or features are of.
        scores: those whose targets are shown.

    Returns:
        None if the data cannot be shown; the reason is printed on standard error.
    """
    if not run.config.exists():
        return None
    try:
        from trak_lightning.cli.job import Job
        from trak_lightning.report.samples import samples_of

        job = Job(command, with_targets_of(run, scores) if scores and what == "target" else [str(run.path)])
        settings = job.settings
        data, split = (
            (job.train_data, settings.train_split) if what == "train" else (job.target_data, settings.target_split)
        )
        if len(data) != expected:
            raise DataError(f"the data has {len(data)} samples, and the run was made with {expected}")
        job.require_same_data(split)
        return samples_of(data, datamodule=job.datamodule, task=job.parts.task)
    except Exception as error:  # a user's data module may raise anything, and the numbers are there
        print(f"samples are not shown: {type(error).__name__}: {error}", file=sys.stderr)
        return None
