"""Several ranks in one job: all make the same decisions, and none waits for a dead one."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import lightning as L
from torch import distributed
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from trak_lightning.errors import IncompleteRunError, first_line
from trak_lightning.runtime.lightning import spawns_ranks
from trak_lightning.runtime.signals import StopRequest

T = TypeVar("T")

GRACE_SECONDS = 60
"""How long a rank may take to finish its block after rank 0 has died."""

_RANK_ZERO = "TRAK_RANK_ZERO"
"""Environment variable in which rank 0 leaves its process id and its split for the ranks that it starts."""

_RESUME = "What is stored is kept; run the same command again to resume, with any number of ranks."


def in_group() -> bool:
    """Whether this process has joined a group of ranks."""
    return distributed.is_available() and distributed.is_initialized()


def world_size() -> int:
    """The number of ranks in the group of this process; 1 without one."""
    return distributed.get_world_size() if in_group() else 1


def will_join_group(trainer: L.Trainer) -> bool:
    """Whether this process joins a group of ranks in its first prediction. Where the Trainer spawns ranks for every
    prediction, the spawning process never joins."""
    return trainer.world_size > 1 and not in_group() and not spawns_ranks(trainer)


def takes_part(trainer: L.Trainer, split: str, missing: bool) -> bool:
    """Whether this rank goes on to ``Trainer.predict``.

    All ranks must decide the same, although another job may store the last block after one rank has looked and before
    the next one does.
    """
    if trainer.world_size == 1:
        return missing
    if in_group():
        return True
    if trainer.strategy.cluster_environment.creates_processes_externally:  # type: ignore[attr-defined]
        return os.environ.get(_RANK_ZERO, f" {split}").partition(" ")[2] == split
    if missing:
        os.environ[_RANK_ZERO] = f"{os.getpid()} {split}"
    return missing


def agreed(trainer: L.Trainer, look: Callable[[], T]) -> T:
    """What rank 0 sees. Before ranks have joined a group, every process is its own rank 0."""
    with lost_ranks():
        return trainer.strategy.broadcast(look() if trainer.is_global_zero or not in_group() else None)  # type: ignore[return-value]


def gathered(value: T) -> list[T]:
    """The value of every rank, in the order of the ranks."""
    if not in_group():
        return [value]
    found: list[T | None] = [None] * world_size()
    with lost_ranks():
        distributed.all_gather_object(found, value)
    return found  # type: ignore[return-value]


@contextmanager
def lost_ranks() -> Iterator[None]:
    """Explain errors that arise because another rank has died.

    Raises:
        IncompleteRunError: another rank has died.
    """
    try:
        yield
    except (ProcessExitedException, ProcessRaisedException) as error:  # from a spawned rank
        last = str(error).strip().splitlines()[-1]
        raise IncompleteRunError(f"rank {error.error_index} ended: {last} {_RESUME}") from error
    except RuntimeError as error:
        if not (in_group() and (isinstance(error, distributed.DistError) or "/gloo/" in str(error))):
            raise
        raise IncompleteRunError(
            f"another rank has ended, see its message ({first_line(error)[:200]}). {_RESUME}"
        ) from error


def follow_rank_zero(stop: StopRequest) -> None:
    """End soon after rank 0, if rank 0 has started this process."""
    parent = _parent()
    if parent is None or any(thread.name == _RANK_ZERO for thread in threading.enumerate()):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        stop.reason = stop.reason or "rank 0 has ended"
        time.sleep(GRACE_SECONDS)
        os._exit(1)  # nothing else wakes a thread that waits for rank 0

    threading.Thread(target=watch, name=_RANK_ZERO, daemon=True).start()


def outlast_rank_zero() -> None:
    """Wait until rank 0 has stored its block and ended, if rank 0 has started this process: Lightning kills rank 0 as
    soon as a rank that it started ends."""
    deadline = time.monotonic() + GRACE_SECONDS
    while _parent() == os.getppid() and time.monotonic() < deadline:
        time.sleep(0.1)


def _parent() -> int | None:
    """The process id of rank 0, in a process that rank 0 has started."""
    pid = os.environ.get(_RANK_ZERO, "").partition(" ")[0]
    return int(pid) if pid and int(pid) != os.getpid() else None
