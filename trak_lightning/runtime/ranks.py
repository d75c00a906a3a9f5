"""Several ranks at one job: all come to the same decisions, and none waits for one that is dead."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import lightning as L
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch import distributed
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from trak_lightning.errors import IncompleteRunError
from trak_lightning.runtime.signals import StopRequest

T = TypeVar("T")

GRACE_SECONDS = 60
"""How long a rank has to finish its block when rank 0 has died."""

_RANK_ZERO = "TRAK_RANK_ZERO"
"""Environment variable by which rank 0 tells the ranks that it starts who it is, and which split it had come to."""


def met() -> bool:
    """Whether this process belongs to a group of ranks already."""
    return distributed.is_available() and distributed.is_initialized()


def yet_to_meet(trainer: L.Trainer) -> bool:
    """Whether this process will belong to a group of ranks from its first prediction on. Where ranks are spawned for every
    prediction, the process that does so never belongs to them."""
    return trainer.world_size > 1 and not met() and not isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def takes_part(trainer: L.Trainer, split: str, missing: bool) -> bool:
    """Whether this rank goes on to ``Trainer.predict``: with the others, though another job may have stored the last block
    between the looks of two ranks."""
    if trainer.world_size == 1:
        return missing
    if met():
        return True
    if trainer.strategy.cluster_environment.creates_processes_externally:  # type: ignore[attr-defined]
        return os.environ.get(_RANK_ZERO, f" {split}").partition(" ")[2] == split
    if missing:
        os.environ[_RANK_ZERO] = f"{os.getpid()} {split}"
    return missing


def agreed(trainer: L.Trainer, look: Callable[[], T]) -> T:
    """What rank 0 sees. Where ranks have not met, every process is its own rank 0."""
    with lost_ranks():
        return trainer.strategy.broadcast(look() if trainer.is_global_zero or not met() else None)  # type: ignore[return-value]


@contextmanager
def lost_ranks() -> Iterator[None]:
    """Say in plain words that another rank has died, which shows when ranks want to meet.

    Raises:
        IncompleteRunError: it has.
    """
    try:
        yield
    except (ProcessExitedException, ProcessRaisedException) as error:  # of a rank that was spawned
        last = str(error).strip().splitlines()[-1]
        raise IncompleteRunError(f"rank {error.error_index} ended: {last} {_GO_ON}") from error
    except RuntimeError as error:
        if not (met() and (isinstance(error, distributed.DistError) or "/gloo/" in str(error))):
            raise
        raise IncompleteRunError(
            f"another rank has ended, see its message ({str(error).splitlines()[0][:200]}). {_GO_ON}"
        ) from error


_GO_ON = "What is stored is kept; run the same command again, with as many ranks as you like."


def follow_rank_zero(stop: StopRequest) -> None:
    """If rank 0 has started this process: end soon after it."""
    parent = _parent()
    if parent is None or any(thread.name == _RANK_ZERO for thread in threading.enumerate()):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        stop.reason = stop.reason or "rank 0 has ended"
        time.sleep(GRACE_SECONDS)
        os._exit(1)  # whatever waits for rank 0 cannot be woken otherwise

    threading.Thread(target=watch, name=_RANK_ZERO, daemon=True).start()


def outlast_rank_zero() -> None:
    """Wait until rank 0 has stored its block and ended too, if it has started this process: it would be killed on the spot
    when a rank that it started ends."""
    deadline = time.monotonic() + GRACE_SECONDS
    while _parent() == os.getppid() and time.monotonic() < deadline:
        time.sleep(0.1)


def _parent() -> int | None:
    """The process id of rank 0, in a process that it has started."""
    pid = os.environ.get(_RANK_ZERO, "").partition(" ")[0]
    return int(pid) if pid and int(pid) != os.getpid() else None
