"""``trak check``: what would be attributed, and how, from one batch."""

from collections.abc import Sequence

from trak_lightning.cli.job import Job
from trak_lightning.cli.output import print_json, summary


def main(argv: Sequence[str]) -> int:
    """Print what is found; exit status 0 only if featurizing would succeed, as far as one batch can tell."""
    job = Job("check", argv)
    findings = job.check()
    if job.json:
        print_json([{"topic": topic, "text": text} for topic, text in findings])
    else:
        for topic, text in findings:
            summary(topic, text)
    return 0
