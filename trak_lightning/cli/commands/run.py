"""``trak run``: all stages of a run."""

from collections.abc import Sequence

from trak_lightning.cli.job import Job
from trak_lightning.cli.kept_mistakes import keep_mistakes
from trak_lightning.cli.shown_samples import keep_samples
from trak_lightning.errors import SettingsError


def main(argv: Sequence[str]) -> int:
    """Train, featurize, score and evaluate; each stage does what is missing."""
    job = Job("run", argv)
    if job.shard.count > 1:
        raise SettingsError(f"trak run does all of a run; give --shard {job.shard} to trak featurize")
    job.require_compatible()
    job.require_evaluable()
    job.featurize(job.train())
    scores = job.score()
    if job.speaks:
        keep_samples(job, scores)
        keep_mistakes(job, scores)
    job.evaluate()
    return 0
