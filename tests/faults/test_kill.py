"""kill -9 at random moments: what was acknowledged is there, the run resumes, and the result is the same bit for bit.

The full count is ``pytest -m slow tests/faults/test_kill.py -s``; docs/storage.md says what it found.
"""

import os
import random
import signal
import time
from contextlib import suppress

import pytest
from faults import acknowledged, ranks, require_sound, rows
from groups import start


@pytest.mark.parametrize("trials", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_one_process_killed_at_random_moments_loses_nothing(trials, job, whole, tmp_path):
    def victim(run_dir):
        process = job.fork(run_dir)
        return process.pid, lambda: process.join(600) or process.exitcode

    survive(trials, victim, job, whole, tmp_path)


@pytest.mark.slow  # test_ranks kills a rank in continuous integration
@pytest.mark.parametrize("trials", [1, 200])
def test_one_of_two_ranks_killed_at_random_moments_loses_nothing(trials, job, whole, tmp_path):
    generator = random.Random(1)

    def victim(run_dir):
        # Lightning starts the second rank itself, which takes seconds; most of many trials are as torchrun starts them.
        started = by_lightning if trials < 10 or generator.random() < 0.1 else by_torchrun
        return started(job, run_dir, generator)

    survive(trials, victim, job, whole, tmp_path)


def by_torchrun(job, run_dir, generator):
    processes = start(job, run_dir, 2)

    def wait():
        killed.join(600)
        other.join(generator.random() * 4)
        other.kill()  # where one died before they had met, the other would wait for it for half an hour
        other.join(600)
        return killed.exitcode or other.exitcode

    killed, other = generator.sample(processes, 2)
    return killed.pid, wait


def by_lightning(job, run_dir, generator):
    process = job.start(run_dir, "--trainer.devices", 2, "--trainer.strategy", "ddp", start_new_session=True)
    while not (children := ranks(process.pid)) and process.poll() is None:
        time.sleep(0.01)

    def wait():
        code = process.wait(600)
        time.sleep(generator.random() * 2)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        return code

    return generator.choice([process.pid, *children]), wait


def survive(trials, victim, job, whole, tmp_path):
    """Start a run, kill a process of it at a random moment, look, and resume it; begin a new run when it is finished."""
    generator = random.Random(2)
    blocks = len({path for path, _ in whole})
    killed = runs = finished_first = 0
    while killed < trials:
        run_dir = tmp_path / f"run-{runs}"
        runs += 1
        complete = False
        while not complete and killed < trials:
            before = acknowledged(run_dir)
            pid, wait = victim(run_dir)
            await_moment(run_dir, before, blocks, generator)
            there = acknowledged(run_dir)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            code = wait()
            killed += 1
            after = acknowledged(run_dir)
            # Blocks of before were not computed again, and those that were there at the kill still are.
            assert {**before, **there}.items() <= after.items()
            require_sound(run_dir)
            complete = len(after) == blocks
            finished_first += code == 0
            print(f"kill {killed} of {trials}: {len(after) - len(before)} blocks were added, {len(after)} are there")
            assert code != 0 or complete
        before = acknowledged(run_dir)
        code, output = job.finish(run_dir)
        assert code == 0, output
        assert before.items() <= acknowledged(run_dir).items()
        assert rows(run_dir) == whole
        assert not list(run_dir.rglob("*.part"))
    print(f"\n{killed} kills of {runs} runs, {finished_first} of them too late; nothing lost, nothing computed twice")


def await_moment(run_dir, before, blocks, generator):
    """Until some number of further blocks is stored, and a little longer; or at any moment of the start."""
    if generator.random() < 0.2:
        time.sleep(generator.random())
        return
    wanted = len(before) + generator.randrange(20)
    deadline = time.monotonic() + 600
    while len(acknowledged(run_dir)) < min(wanted, blocks) and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(generator.random() * 0.03)
