"""A small featurizing job, real processes that run it, and what must hold of its run directory after any of them died."""

import ctypes
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import pytest
import torch
import yaml

from trak_lightning.cli import main
from trak_lightning.stores.hdf5 import HDF5Store

CONFIG = {
    "model": {"class_path": "trak_lightning.demos.DigitsCNN", "init_args": {"width": 8}},
    "data": {"class_path": "growing.SomeDigits", "init_args": {"num_train": 600}},
    "trainer": {"accelerator": "cpu", "max_epochs": 1},
    "ensemble": {"size": 2},
    "projector": {"name": "sparse_jl", "dim": 256},
    "batch_size": 16,
    "block_size": 32,
}
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "200",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
}


class Job:
    """``trak featurize`` of some checkpoints; of two that it trains, if none are given."""

    def __init__(self, folder, config=CONFIG, checkpoints=()):
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self._forks = forks()
        self.checkpoints = checkpoints
        if not checkpoints:
            done = trak("train", "--config", self.config, "--run_dir", folder / "trained")
            assert done.returncode == 0, done.stderr
            self.checkpoints = sorted((folder / "trained" / "checkpoints").glob("*.ckpt"))

    def arguments(self, run_dir, *more):
        named = f"[{', '.join(map(str, self.checkpoints))}]"
        return [*map(str, ("featurize", "--config", self.config, "--checkpoints", named, "--run_dir", run_dir, *more))]

    def fork(self, run_dir, *more, name="", environment=None, before=None, log=None):
        """Run it in a forked process, which needs no seconds to import torch; returns the process. `before` is called in it
        first.
        """
        arguments = self.arguments(run_dir, *more), log or f"{run_dir}{name}.log", environment or {}, before
        process = self._forks.Process(target=run, args=arguments)
        process.start()
        return process

    def finish(self, run_dir, *more, before=None, log=None):
        """Run it to its end; returns the exit code and what it printed."""
        process = self.fork(run_dir, *more, before=before, log=log)
        process.join(900)
        return process.exitcode, Path(log or f"{run_dir}.log").read_text()

    def start(self, run_dir, *more, **options):
        """Run it as a user does; returns the process."""
        command = [sys.executable, "-m", "trak_lightning", *self.arguments(run_dir, *more)]
        return subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
        )


PRELOADED = [
    *(f"trak_lightning.{name}" for name in ("api", "cli.job", "demos.digits", "extractors.auto", "projectors.auto")),
    *(f"trak_lightning.cli.commands.{name}" for name in ("train", "featurize", "score", "evaluate", "top", "suspects")),
    *("sklearn.datasets", "pandas", "s3fs"),  # which saving a checkpoint imports where it is installed
]
"""What most of these processes would import, each of them again. What is not installed is left out."""


def forks():
    """Makes processes that need no seconds to import torch."""
    os.environ.update(
        {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    )  # of the server, which is started by the first process
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run(what, output, environment, before=None, errors=None):
    """``trak WHAT``, or Python code, in a forked process, with everything that it prints in the file `output`; errors in another,
    if given.
    """
    os.environ.update(environment)
    opened = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in (output, errors) if path]
    os.dup2(opened[0], 1)
    os.dup2(opened[-1], 2)
    if before is not None:
        before()
    sys.exit(main(what) if isinstance(what, list) else exec(what, {"__name__": "__main__"}))


def trak(*arguments, timeout=900, before=None):
    """``trak ARGUMENTS`` in a forked process, run to its end. `before` is called in it first."""
    return forked([*map(str, arguments)], {"COLUMNS": "200"}, before, timeout)


def forked(what, environment, before=None, timeout=900):
    """``trak WHAT`` of a list, or the Python code `what`, in a process that needs no seconds to import torch, run to its end."""
    with TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        process = forks().Process(target=run, args=(what, output, environment, before), kwargs={"errors": errors})
        process.start()
        process.join(timeout)
        return subprocess.CompletedProcess(what, process.exitcode, output.read_text(), errors.read_text())


def enter(folder, *path):
    """Let this process work in a folder, and import from a path first."""
    os.chdir(folder)
    sys.path[:0] = path


def without_privileges():
    """Let permissions count for this process even if it is root's, by giving up all capabilities."""
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")


def clock_in_1970():
    """Let the clock of this process stand before everything that it finds."""
    time.time, time.time_ns = float, int
    assert time.time() == 0


def with_tanh():
    """Let the code of a model be another one in this process: its checkpoints fit, and its gradients differ."""
    torch.nn.ReLU.forward = lambda self, x: torch.tanh(x)


def without_haste():
    """Let lines of samples be kept in this process however slow the machine is."""
    from trak_lightning.cli import shown_samples

    shown_samples.SECONDS = 60.0


def of_a_terminal():
    """Let Ctrl+C reach this process, whatever the tests were started by."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def in_a_group_of_its_own():
    """Let Ctrl+C reach this process and those that it starts, and no other."""
    os.setsid()
    of_a_terminal()


def in_the_background():
    """Let this process be as ``trak … &`` in a script or ``nohup``: it finds SIGINT ignored, and leaves it so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def small_disk(folder, pages):
    """A file system of so many pages of 4096 bytes in `folder`; skips the test where none can be mounted."""
    folder.mkdir(exist_ok=True)
    try:
        mount("-t", "tmpfs", "-o", f"size={pages * 4096}", "tmpfs", folder)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


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
