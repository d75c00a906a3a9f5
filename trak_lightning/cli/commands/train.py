"""``trak train``: an ensemble of checkpoints."""

from collections.abc import Sequence

from trak_lightning.cli.job import Job


def main(argv: Sequence[str]) -> int:
    """Train the checkpoints that are missing."""
    job = Job("train", argv)
    job.train()
    job.keep_configuration()
    return 0
