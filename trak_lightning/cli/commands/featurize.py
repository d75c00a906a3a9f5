"""``trak featurize``: checkpoints → features."""

from collections.abc import Sequence

from trak_lightning.cli.job import Job


def main(argv: Sequence[str]) -> int:
    """Compute the features that are missing."""
    job = Job("featurize", argv)
    job.featurize(job.checkpoints())
    return 0
