"""What commands say on standard output: one line a stage."""

import time


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
