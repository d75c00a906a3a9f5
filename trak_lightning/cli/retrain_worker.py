"""One process of several that retrain: reads the configuration, and trains the models of its share."""

import json
import sys
from pathlib import Path

from trak_lightning.cli.job import Job
from trak_lightning.cli.retrain_processes import read_share

if __name__ == "__main__":
    share, argv = sys.argv[1:]
    job = Job("worker", json.loads(argv))
    job.require_same_data(job.settings.train_split, job.settings.target_split)
    job.retrain_here(read_share(Path(share)))
