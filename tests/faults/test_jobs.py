"""Several jobs on one run directory."""

import os
import shutil
import signal
import time

import yaml
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
    assert (
        yaml.safe_load((run_dir / "config.yaml").read_text())["projector"]["init_args"]["dim"] == dims[codes.index(0)]
    )
    if codes[0] == 0:
        assert rows(run_dir) == whole


def test_new_samples_and_checkpoints_of_a_finished_run_are_all_that_is_computed(job, tmp_path):
    # Copies, because of the originals it is known that they were trained on all samples.
    checkpoints = [shutil.copy(path, tmp_path / path.name) for path in job.checkpoints]

    def featurize(run_dir, samples, checkpoints, *more):
        named = f"[{', '.join(map(str, checkpoints))}]"
        data = ("--data", "growing.SomeDigits", "--data.num_train", samples)
        return job.finish(tmp_path / run_dir, *data, "--checkpoints", named, *more)

    code, output = featurize("run", 500, checkpoints[:1])
    assert code == 0, output
    before = acknowledged(tmp_path / "run")
    code, output = featurize("run", 700, checkpoints)
    assert (code, "--grow true" in output) == (1, True), output
    assert acknowledged(tmp_path / "run") == before
    code, output = featurize("run", 700, checkpoints, "--grow", "true")
    # Of batches of 16, 31 were whole; then the samples after them, and everything under the second checkpoint.
    assert (code, f"{700 - 31 * 16 + 700 + 60} computed" in output) == (0, True), output
    kept = before.items() & acknowledged(tmp_path / "run").items()
    assert len(before) - len(kept) == 1  # the block in which the 500 samples ended
    assert featurize("at once", 700, checkpoints)[0] == 0
    assert rows(tmp_path / "run") == rows(tmp_path / "at once")


def test_what_a_killed_job_leaves_undone_the_others_do(job, whole, tmp_path):
    run_dir = tmp_path / "run"
    logs = [tmp_path / f"job-{number}" for number in range(3)]
    jobs = [job.fork(run_dir, log=log) for log in logs]
    while len(acknowledged(run_dir)) < 2:
        time.sleep(0.002)
    os.kill(jobs[0].pid, signal.SIGKILL)
    for process in jobs:
        process.join(600)
    assert jobs[0].exitcode in (-signal.SIGKILL, 0)
    assert [process.exitcode for process in jobs[1:]] == [0, 0], [log.read_text() for log in logs]
    assert rows(run_dir) == whole
    # A job that died while it wrote leaves a file that nobody needs; the next run deletes it, also where the others had
    # finished meanwhile.
    next(run_dir.glob("features/train/*")).joinpath("block-00001.h5.0.part").touch()
    assert job.finish(run_dir)[0] == 0
    assert main(["verify", str(run_dir)]) == 0
