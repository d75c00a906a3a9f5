"""What a user sees of the traceback of an error that is raised on purpose: their own code, and not how we came to call it."""

from pathlib import Path
from types import TracebackType

import lightning

import trak_lightning

HIDDEN = tuple(f"{Path(str(package.__file__)).parent}/" for package in (trak_lightning, lightning))


def without_our_frames(error: BaseException) -> BaseException:
    """Leave the frames of this library and of Lightning out of the traceback of an error, and out of those that it names as its cause."""
    if error.__cause__ is not None:
        without_our_frames(error.__cause__)
    else:
        error.__suppress_context__ = True
    return error.with_traceback(_others(error.__traceback__))


def _others(found: TracebackType | None) -> TracebackType | None:
    frames = []
    while found is not None:
        frames.append(found)
        found = found.tb_next
    shown = None
    for each in reversed(frames):
        if not each.tb_frame.f_code.co_filename.startswith(HIDDEN):
            shown = TracebackType(shown, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return shown
