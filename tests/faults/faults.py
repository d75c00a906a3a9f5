"""A small featurizing job, real processes that run it, and what must hold of its run directory after any of them died."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import h5py
import yaml

from trak_lightning.cli import main
from trak_lightning.stores.hdf5 import HDF5Store

CONFIG = {
    "model": {"class_path": "trak_lightning.demos.DigitsCNN", "init_args": {"width": 8}},
    "data": {"class_path": "trak_lightning.demos.DigitsDataModule", "init_args": {"num_targets": 60}},
    "trainer": {"accelerator": "cpu", "max_epochs": 1},
    "ensemble": {"size": 2},
    "projector": {"name": "sparse_jl", "dim": 256},
    "batch_size": 16,
    "block_size": 48,
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


class Job:
    """``trak featurize`` of two checkpoints."""

    def __init__(self, folder):
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(CONFIG))
        self._forks = multiprocessing.get_context("forkserver")
        self._forks.set_forkserver_preload(["faults", "trak_lightning.api", "trak_lightning.cli.training"])
        done = self.call("train", "--run_dir", folder / "trained")
        assert done.returncode == 0, done.stderr
        self.checkpoints = sorted((folder / "trained" / "checkpoints").glob("*.ckpt"))

    def arguments(self, run_dir, *more):
        named = f"[{', '.join(map(str, self.checkpoints))}]"
        return [*map(str, ("featurize", "--config", self.config, "--checkpoints", named, "--run_dir", run_dir, *more))]

    def fork(self, run_dir, *more, name="", environment=None):
        """Run it in a forked process, which needs no seconds to import torch; returns the process."""
        arguments = self.arguments(run_dir, *more), f"{run_dir}{name}.log", environment or {}
        process = self._forks.Process(target=run, args=arguments)
        process.start()
        return process

    def finish(self, run_dir, *more):
        """Run it to its end; returns the exit code and what it printed."""
        process = self.fork(run_dir, *more)
        process.join(900)
        return process.exitcode, Path(f"{run_dir}.log").read_text()

    def start(self, run_dir, *more, **options):
        """Run it as a user does; returns the process."""
        command = [sys.executable, "-m", "trak_lightning", *self.arguments(run_dir, *more)]
        return subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
        )

    def call(self, *arguments):
        command = [sys.executable, "-m", "trak_lightning", arguments[0], "--config", self.config, *arguments[1:]]
        return subprocess.run(
            [*map(str, command)], env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=900
        )


def run(argv, output, environment):
    """``trak ARGV`` in a forked process, with everything that it prints in the file `output`."""
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(main(argv))


def acknowledged(run_dir):
    """Block files that are there, with what tells that they were not written again."""
    return {path: path.stat().st_ino for path in Path(run_dir).rglob("block-*.h5")}


def rows(run_dir):
    """Everything in the block files of a run directory, by (split/checkpoint/block, name)."""
    found = {}
    for path in sorted(Path(run_dir).rglob("block-*.h5")):
        with h5py.File(path) as file:
            for name in file:
                found["/".join(path.parts[-3:]), name] = file[name][()].tobytes()
    return found


def require_sound(run_dir):
    """Every block that is there is whole, and is what it was when it was written."""
    store = HDF5Store()
    store.bind(Path(run_dir) / "features")
    for split, checkpoint in store.list():
        feature_set = store.open(split, checkpoint)
        missing = feature_set.missing_blocks()
        for block in range(feature_set.spec.num_blocks):
            if block not in missing:
                feature_set.verify_block(block)


def ranks(pid):
    """The process ids of the children of a process."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
