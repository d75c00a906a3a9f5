"""What SLURM does to a job: signals before its time is up, and putting it back in the queue."""

import os
import signal
import stat
import time
from pathlib import Path

import pytest
from faults import acknowledged, rows
from groups import slurm


@pytest.mark.parametrize(
    ("array", "name", "requeued"),
    [
        pytest.param({}, "7", "requeue 7", marks=pytest.mark.slow),
        ({"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}, "8", "requeue 5_3"),
    ],
)
def test_a_job_whose_time_is_up_finishes_its_block_and_is_queued_again(array, name, requeued, job, whole, tmp_path):
    """Under Lightning's SLURMEnvironment, which it detects and which requeues by default."""
    scontrol, said = tmp_path / "scontrol", tmp_path / "said"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IEXEC)
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"of a training in the same folder")
    environment = {**slurm(0, 1), **array, "SLURM_JOB_ID": name, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    options = ("--trainer.default_root_dir", tmp_path)
    run_dir = tmp_path / "run"

    def start():
        return job.fork(run_dir, *options, environment={key: str(value) for key, value in environment.items()})

    process = start()
    while len(acknowledged(run_dir)) < 3:
        assert process.is_alive(), Path(f"{run_dir}.log").read_text()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGUSR1)
    process.join(600)
    there = acknowledged(run_dir)
    assert (process.exitcode, len(there) < len({path for path, _ in whole})) == (143, True)
    assert said.read_text().split("\n") == [requeued, ""]
    assert "SIGUSR1 received, job" in Path(f"{run_dir}.log").read_text()
    assert [path.name for path in tmp_path.glob("hpc_ckpt*")] == ["hpc_ckpt_1.ckpt"]

    again = start()
    again.join(600)
    assert again.exitcode == 0, Path(f"{run_dir}.log").read_text()
    assert there.items() <= acknowledged(run_dir).items()
    assert rows(run_dir) == whole
