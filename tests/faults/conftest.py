import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from faults import Job, rows


@pytest.fixture(scope="session")
def job(tmp_path_factory):
    os.environ["OMP_NUM_THREADS"] = "1"
    return Job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="session")
def whole(job, tmp_path_factory):
    """The rows of an uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    code, output = job.finish(run_dir)
    assert code == 0, output
    return rows(run_dir)
