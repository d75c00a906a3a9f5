"""One process of several that retrain: reads the configuration, and trains the models of its share."""

import json
import sys
from pathlib import Path

from trak_lightning.cli import at_home
from trak_lightning.cli.job import Job
from trak_lightning.cli.retrain_processes import read_share


def main() -> None:
    """Train the models of the share that the first argument names, with the settings in the second."""
    share, argv = sys.argv[1:]
    with at_home("evaluate"):
        job = Job("worker", json.loads(argv))
        job.require_same_data(job.settings.train_split, job.settings.target_split)
        job.retrain_here(read_share(Path(share)))
