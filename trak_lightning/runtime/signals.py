"""Ctrl+C, SIGTERM, and the signal with which SLURM announces that the time of a job is up."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from trak_lightning.errors import TerminatedError
from trak_lightning.runtime.lightning import cluster_environment


@dataclass
class StopRequest:
    """Whether this process was asked to end. It ends after it has stored the current block."""

    reason: str | None = None

    def check(self) -> None:
        """End here if asked to; call it where nothing is half done.

        Raises:
            TerminatedError: the process was asked to end.
        """
        if self.reason is not None:
            raise TerminatedError(f"{self.reason}; what is stored is kept; run the same command again to resume")

    @contextmanager
    def watching(self, trainer: L.Trainer) -> Iterator[None]:
        """Note signals, and restore the previous handlers afterwards."""
        before = {number: signal.getsignal(number) for number in self._handlers(trainer)}
        self.install(trainer)
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def install(self, trainer: L.Trainer) -> None:
        """Replace Lightning's handlers by ours.

        Lightning's handler of SIGTERM synchronizes the ranks, inside the handler, whatever they are doing; its handler of
        SLURM's signal saves the module as a training checkpoint, which the next run would load.
        """
        if threading.current_thread() is threading.main_thread():  # no other thread may
            for number, handler in self._handlers(trainer).items():
                signal.signal(number, handler)

    def _handlers(self, trainer: L.Trainer) -> dict[int, Callable[[int, Any], None]]:
        handlers: dict[int, Callable[[int, Any], None]] = {int(signal.SIGTERM): partial(self._on_sigterm, trainer)}
        environment = cluster_environment(trainer)
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue and environment.requeue_signal:
            handlers[int(environment.requeue_signal)] = partial(self._on_requeue, trainer)
        return handlers

    def _on_sigterm(self, trainer: L.Trainer, number: int, frame: Any) -> None:
        self.reason = self.reason or "SIGTERM received"
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)  # passes it on to the ranks that it has started

    def _on_requeue(self, trainer: L.Trainer, number: int, frame: Any) -> None:
        if self.reason is None:
            self.reason = f"{signal.Signals(number).name} received"
            # Now, not after the block: SLURM may end the job before the block is done.
            if trainer.is_global_zero:
                self.reason += f", {_requeue()}"


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Make Ctrl+C a `KeyboardInterrupt`; Lightning turns it into ``sys.exit(1)`` and ignores SIGINT from then on.

    Python drops an exception that is raised while an object is freed. The yielded function raises `KeyboardInterrupt` if
    that was the fate of one; call it where nothing is half done.
    """
    handler, received = signal.getsignal(signal.SIGINT), []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        if callable(handler):
            handler(number, frame)

    def check() -> None:
        if received:
            raise KeyboardInterrupt

    listens = callable(handler) and threading.current_thread() is threading.main_thread()
    if listens:
        signal.signal(signal.SIGINT, note)
    try:
        yield check
        check()
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt from error
    finally:
        if listens:
            signal.signal(signal.SIGINT, handler)


def _requeue() -> str:
    """Ask SLURM to requeue this job; returns the result in words."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID", "")
    if array:
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"and job {job} could not be put back in the queue: scontrol: {error.strerror}"
    if done.returncode:
        return f"and job {job} could not be put back in the queue: {done.stderr.strip() or done.returncode}"
    return f"job {job} is in the queue again"
