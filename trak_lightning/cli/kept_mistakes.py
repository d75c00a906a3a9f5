"""What the models say of targets whose label is another class: kept in the run directory, or predicted if it is not known."""

import sys
from typing import TYPE_CHECKING

from trak_lightning.cli.shown_samples import with_targets_of
from trak_lightning.errors import TerminatedError
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.sample_lines import SampleLines
from trak_lightning.scoring.mistakes import Mistakes
from trak_lightning.scoring.scores import Scores

if TYPE_CHECKING:
    from trak_lightning.cli.job import Job

LARGEST = 10**10
"""Parameters times predictions from which on what later commands may say is not predicted before it is asked for: seconds on a CPU."""


def find_mistakes(run: RunDirectory, scores: Scores) -> Mistakes:
    """See `Scores.mistakes`; what models say of them is kept.

    Raises:
        TrakError: the data, the model or a checkpoint are not those of the run, or the task predicts neither classes nor numbers.
    """
    from trak_lightning.cli.job import Job

    return _found(Job("top", with_targets_of(run, scores)), scores)


def says(run: RunDirectory, scores: Scores, target: int) -> str | None:
    """What the models say of a target where that is not its label; the reason why it is not known is printed on standard error."""
    if scores.grouped or not run.config.exists() or target not in scores.doubtful():
        return None
    kept = SampleLines(run).said(scores.checksum)
    if kept is None:
        try:
            from trak_lightning.cli.job import Job

            job = Job("top", with_targets_of(run, scores))
            if not _is_quick(job, scores):
                print(
                    f"what the models say is shown after: trak top {run.path}, which predicts targets", file=sys.stderr
                )
                return None
            kept = _said(_found(job, scores))
        except TerminatedError:
            raise
        except Exception as error:  # a user's data module may raise anything, and the numbers are there
            print(f"what the models say is not shown: {type(error).__name__}: {error}", file=sys.stderr)
            return None
    return kept.get(target)


def keep_mistakes(job: "Job", scores: Scores) -> None:
    """Keep what the models say of mistakes for later commands, if it is predicted in seconds."""
    known = scores.grouped or not len(scores.doubtful()) or SampleLines(job.run).said(scores.checksum) is not None
    if known or job.num_processes > 1 or not _is_quick(job, scores):
        return
    try:
        _found(job, scores)
    except TerminatedError:
        raise
    except Exception:  # the user's code may raise anything; a command that shows it says what
        return


def _is_quick(job: "Job", scores: Scores) -> bool:
    parameters = sum(each.numel() for each in job.model.parameters())
    return len(scores.doubtful()) * job.num_checkpoints * parameters <= LARGEST


def _found(job: "Job", scores: Scores) -> Mistakes:
    scores.predictor = job.target_predictor()
    found = scores.mistakes()
    if scores.meaning.probability == "output":
        SampleLines(job.run).keep_said(scores.checksum, _said(found))
    return found


def _said(found: Mistakes) -> dict[int, str]:
    return {each.target: each.said for each in found}
