"""What commands say on standard output: one line a stage."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def summary(stage: str, what: str, new: int | None = None, verb: str = "", started: float | None = None) -> None:
    """One line: the stage, its result, and what was done now. ``new=0`` says that there was nothing to do."""
    if new is None:
        done = ""
    elif new:
        done = (
            f" ({new} {verb} in {time.perf_counter() - started:.1f} s)" if started is not None else f" ({new} {verb})"
        )
    else:
        done = " (already finished, nothing to do)"
    print(f"{stage:<10} {what}{done}", flush=True)


@contextmanager
def narrated() -> Iterator[None]:
    """What our own modules log is printed, a line each."""
    logger = logging.getLogger("trak_lightning")
    handler, level = logging.StreamHandler(sys.stdout), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
