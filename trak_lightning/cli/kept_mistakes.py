"""The targets that the models get wrong: kept in the run directory, or predicted if they are not known."""

import sys
from typing import TYPE_CHECKING

from trak_lightning import registry
from trak_lightning.cli.shown_samples import with_targets_of
from trak_lightning.errors import NothingPredictedError, TerminatedError
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.sample_lines import SampleLines
from trak_lightning.scoring.mistakes import Mistakes
from trak_lightning.scoring.scores import Scores
from trak_lightning.stores.configured import configured

if TYPE_CHECKING:
    from trak_lightning.cli.job import Job

LARGEST = 10**10
"""Parameters times predictions from which on what later commands may say is not predicted before it is asked for: seconds on a CPU."""

MOST = 10_000
"""How many mistakes are kept."""


def find_mistakes(run: RunDirectory, scores: Scores) -> Mistakes | None:
    """See `Scores.mistakes`; they are kept. None if the task predicts neither classes nor numbers, or if the run was made in Python, so
    that neither model nor data are at hand.

    Raises:
        TrakError: the data, the model or a checkpoint are not those of the run.
    """
    found = _kept(run, scores) if run.config.exists() else None
    if found is None and run.config.exists() and _may_predict(run, scores):
        from trak_lightning.cli.job import Job

        try:
            found = _predicted(Job("top", with_targets_of(run, scores)), scores)
        except NothingPredictedError:
            return None
    return found


def _may_predict(run: RunDirectory, scores: Scores) -> bool:
    """Whether it is worth loading model and data to ask the task for classes or numbers; those of a language model take long."""
    if scores.meaning.number or scores.meaning.probability is None:
        return scores.meaning.number
    from trak_lightning.tasks.base import Task

    try:
        task = registry.imported(configured(run, "task")["class_path"])
        return task.answers is not Task.answers or task.probabilities is not Task.probabilities
    except (ImportError, AttributeError, KeyError, TypeError, ValueError):  # the job says what is wrong
        return True


def says(run: RunDirectory, scores: Scores, target: int) -> str | None:
    """What the models say of a target where that is not its label; the reason why it is not known is printed on standard error."""
    if scores.grouped or not run.config.exists() or target not in scores.doubtful():
        return None
    found = _kept(run, scores)
    if found is None:
        try:
            from trak_lightning.cli.job import Job

            job = Job("top", with_targets_of(run, scores))
            if not _is_quick(job, scores):
                print(
                    f"what the models say is shown after: trak top {run.path}, which predicts targets", file=sys.stderr
                )
                return None
            found = _predicted(job, scores)
        except TerminatedError:
            raise
        except Exception as error:  # a user's data module may raise anything, and the numbers are there
            print(f"what the models say is not shown: {type(error).__name__}: {error}", file=sys.stderr)
            return None
    return next((each.said for each in found if each.target == target), None)


def keep_mistakes(job: "Job", scores: Scores) -> None:
    """Keep the mistakes for later commands, if they are predicted in seconds."""
    known = scores.grouped or not len(scores.doubtful()) or _kept(job.run, scores) is not None
    if known or job.num_processes > 1 or not _is_quick(job, scores):
        return
    try:
        _predicted(job, scores)
    except TerminatedError:
        raise
    except Exception:  # the user's code may raise anything; a command that shows it says what
        return


def _is_quick(job: "Job", scores: Scores) -> bool:
    parameters = sum(each.numel() for each in job.model.parameters())
    return len(scores.doubtful()) * job.num_checkpoints * parameters <= LARGEST


def _kept(run: RunDirectory, scores: Scores) -> Mistakes | None:
    kept = SampleLines(run).mistakes(scores.checksum)
    return None if kept is None else Mistakes.from_kept(kept)


def _predicted(job: "Job", scores: Scores) -> Mistakes:
    scores.predictor = job.target_predictor()
    found = scores.mistakes()
    if len(found) <= MOST:
        SampleLines(job.run).keep_mistakes(scores.checksum, found.to_kept())
    return found
