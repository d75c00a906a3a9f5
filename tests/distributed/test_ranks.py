"""One job on several ranks gives the bits of one process, whichever rank dies, and however many ranks resume it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import ENVIRONMENT, Job, acknowledged, ranks, require_sound, rows
from groups import finish, nodes, slurm, start, torchrun
from towers import TwoTowers


def test_more_ranks_than_blocks_are_fine(job, whole, tmp_path):
    """Three ranks, two blocks a set, so that one rank has nothing to do."""
    processes = start(job, tmp_path / "run", 3, torchrun, "--block_size", 400)
    assert finish(processes) == [0, 0, 0], Path(f"{tmp_path}/run-0.log").read_text()
    assert features(tmp_path / "run") == features_of(whole)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [slurm, nodes])
def test_ranks_of_any_launcher_give_the_bits_of_one_process(launcher, job, whole, tmp_path):
    assert finish(start(job, tmp_path / "run", 2, launcher)) == [0, 0], Path(f"{tmp_path}/run-0.log").read_text()
    assert rows(tmp_path / "run") == whole
    # Only rank 0 says what was done.
    assert [("featurize " in Path(f"{tmp_path}/run-{rank}.log").read_text()) for rank in (0, 1)] == [True, False]


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank_fails_the_job_and_other_numbers_of_ranks_resume_it(victim, job, whole, tmp_path):
    run_dir = tmp_path / "run"
    processes = start(job, run_dir, 2)
    await_blocks(run_dir, 3)
    processes[victim].kill()
    codes = finish(processes)
    there = acknowledged(run_dir)
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 1
    log = Path(f"{run_dir}-{1 - victim}.log").read_text()
    assert "another rank has ended" in log
    assert "Traceback" not in log
    require_sound(run_dir)
    assert 3 <= len(there) < len(acknowledged_blocks(whole))
    assert finish(start(job, run_dir, 3)) == [0, 0, 0]
    assert there.items() <= acknowledged(run_dir).items()
    assert rows(run_dir) == whole


@pytest.mark.slow
def test_what_a_projector_learns_from_the_training_set_is_the_same_on_every_rank(job, tmp_path):
    learns = ("--projector", "{name: lowrank, rank: 4, init: pca, fit_samples: 64}")
    code, output = job.finish(tmp_path / "one", *learns)
    assert code == 0, output
    assert finish(start(job, tmp_path / "run", 2, torchrun, *learns)) == [0, 0]
    assert rows(tmp_path / "run") == rows(tmp_path / "one")


PAIRS = {
    "model": {"class_path": "towers.TwoTowers"},
    "data": {"class_path": "trak_lightning_demos.EmojiDataModule", "init_args": {"num_targets": 20}},
    "trainer": {"accelerator": "cpu"},
    "task": {"name": "contrastive", "negatives": 40},
    "projector": {"name": "sparse_jl", "dim": 64},
    "batch_size": 128,
    "block_size": 256,
}


def test_every_rank_compares_pairs_with_the_same_others(tmp_path):
    checkpoint = tmp_path / "towers.ckpt"
    torch.manual_seed(0)
    torch.save({"state_dict": TwoTowers().state_dict()}, checkpoint)
    job = Job(tmp_path, PAIRS, [checkpoint])
    code, output = job.finish(tmp_path / "one")
    assert code == 0, output
    assert finish(start(job, tmp_path / "run", 2)) == [0, 0], Path(f"{tmp_path}/run-0.log").read_text()
    banks = [next((tmp_path / name / "references").glob("*.npz")) for name in ("one", "run")]
    with np.load(banks[0]) as one, np.load(banks[1]) as other:
        assert len(one["images"]) == 40
        assert all(one[key].tobytes() == other[key].tobytes() for key in one.files)
    assert rows(tmp_path / "run") == rows(tmp_path / "one")


def test_an_error_of_one_rank_is_said_and_fails_the_job(job, tmp_path):
    processes = start(job, tmp_path / "run", 2, torchrun, "--trainer.limit_predict_batches", 1)
    assert finish(processes) == [1, 1]
    assert "or the Trainer limits the batches" in Path(f"{tmp_path}/run-0.log").read_text()


def test_all_ranks_finish_their_blocks_when_they_are_asked_to_end(job, whole, tmp_path):
    run_dir = tmp_path / "run"
    processes = start(job, run_dir, 2)
    await_blocks(run_dir, 3)
    for process in processes:
        process.terminate()
    assert finish(processes) == [143, 143]
    there = acknowledged(run_dir)
    assert len(there) < len(acknowledged_blocks(whole))
    assert job.finish(run_dir)[0] == 0
    assert there.items() <= acknowledged(run_dir).items()
    assert rows(run_dir) == whole


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_ranks_that_lightning_starts_give_the_bits_of_one_process(strategy, job, whole, tmp_path):
    process = job.start(tmp_path / "run", "--trainer.devices", 2, "--trainer.strategy", strategy)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert rows(tmp_path / "run") == whole
    assert "UserWarning" not in output


@pytest.mark.slow
def test_two_nodes_of_torchrun(job, whole, tmp_path):
    arguments = job.arguments(tmp_path / "run", "--trainer.strategy", "ddp", "--trainer.num_nodes", 2)
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--master-addr", "127.0.0.1"]
    command += ["--master-port", "29533", "--node-rank"]
    processes = [
        subprocess.Popen([*command, node, "-m", "trak_lightning", *arguments], env=ENVIRONMENT) for node in ("0", "1")
    ]
    assert [process.wait(900) for process in processes] == [0, 0]
    assert rows(tmp_path / "run") == whole


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ranks_that_lightning_started_end_with_the_one_that_started_them(number, job, whole, tmp_path):
    process = job.start(tmp_path / "run", "--trainer.devices", 2, "--trainer.strategy", "ddp")
    await_blocks(tmp_path / "run", 3)
    (child,) = ranks(process.pid)
    os.kill(process.pid, number)
    assert process.wait(600) == {signal.SIGKILL: -9, signal.SIGTERM: 143}[number]
    process.stdout.close()
    deadline = time.monotonic() + 300
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()
    assert job.finish(tmp_path / "run")[0] == 0
    assert rows(tmp_path / "run") == whole


def await_blocks(run_dir, number):
    deadline = time.monotonic() + 600
    while len(acknowledged(run_dir)) < number and time.monotonic() < deadline:
        time.sleep(0.002)


def acknowledged_blocks(found):
    return {path for path, _ in found}


def features(run_dir):
    """Every feature set's rows, however they are cut into blocks."""
    return features_of(rows(run_dir))


def features_of(found):
    sets = {}
    for (path, name), data in sorted(found.items()):
        key = path.rpartition("/")[0], name
        sets[key] = sets.get(key, b"") + data
    return sets
