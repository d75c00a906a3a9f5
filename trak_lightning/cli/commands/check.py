"""``trak check``: try a few batches, and report what would be attributed and how."""

from collections.abc import Sequence

from trak_lightning.cli.job import Job
from trak_lightning.cli.output import print_json, summary


def main(argv: Sequence[str]) -> int:
    """Print the findings. Return 0 only if the batches that were tried can be featurized."""
    return print_findings(Job("check", argv))


def print_findings(job: Job) -> int:
    """Print what a few batches tell."""
    findings = job.check()
    if job.json:
        print_json([{"topic": topic, "text": text} for topic, text in findings])
    else:
        for topic, text in findings:
            summary(topic, text)
    return 0
