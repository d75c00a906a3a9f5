"""Several jobs on one run directory."""

import os
import signal
import time
from functools import partial

from faults import acknowledged, rows

from trak_lightning.cli import main


def test_two_runs_with_different_settings_race_for_one_directory_and_one_is_refused(job, whole, tmp_path):
    run_dir = tmp_path / "run"
    dims = (256, 128)
    processes = [job.fork(run_dir, "--projector.dim", dim, log=tmp_path / f"{dim}") for dim in dims]
    for process in processes:
        process.join(600)
    codes = [process.exitcode for process in processes]
    assert sorted(codes) == [0, 1], [(tmp_path / f"{dim}").read_text() for dim in dims]
    loser = (tmp_path / f"{dims[codes.index(1)]}").read_text()
    assert "was made with dim = " in loser
    assert "is asked for now" in loser
    assert main(["verify", str(run_dir)]) == 0
    if codes[0] == 0:
        assert rows(run_dir) == whole


def as_array_task(number):
    """What SLURM tells a task of an array."""
    told = {"JOB_ID": 7000 + number, "ARRAY_JOB_ID": 7000, "ARRAY_TASK_ID": number, "NTASKS": 1, "NTASKS_PER_NODE": 1}
    told |= {"PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_NAME": "featurize", "NODELIST": "localhost"}
    os.environ.update({f"SLURM_{name}": str(value) for name, value in told.items()})


def test_the_tasks_of_a_slurm_array_share_the_work_and_one_may_be_killed(job, whole, tmp_path):
    run_dir = tmp_path / "run"
    logs = [tmp_path / f"task-{number}" for number in range(4)]
    tasks = [job.fork(run_dir, before=partial(as_array_task, number), log=log) for number, log in enumerate(logs)]
    while len(acknowledged(run_dir)) < 2:
        time.sleep(0.002)
    os.kill(tasks[0].pid, signal.SIGKILL)
    for task in tasks:
        task.join(600)
    assert tasks[0].exitcode in (-signal.SIGKILL, 0)
    assert [task.exitcode for task in tasks[1:]] == [0, 0, 0], [log.read_text() for log in logs]
    assert rows(run_dir) == whole
    # A task that died while it wrote leaves a file that no other needs; the next run deletes it.
    assert job.finish(run_dir)[0] == 0
    assert main(["verify", str(run_dir)]) == 0
