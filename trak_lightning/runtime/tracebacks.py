"""What a user sees of errors and warnings that are raised on purpose: their own code, and not how we came to call it."""

import sys
import warnings
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from trak_lightning.errors import TrakError

P = ParamSpec("P")
R = TypeVar("R")

# Found, and not imported, since commands that only read do without Lightning.
HIDDEN = tuple(
    f"{Path(spec.origin).parent}/"
    for spec in map(find_spec, ("trak_lightning", "lightning"))
    if spec is not None and spec.origin
)


def shows_users_frames(method: Callable[P, R]) -> Callable[P, R]:
    """Show only the user's frames of errors that are raised on purpose."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except TrakError as error:
            raise without_our_frames(error) from error.__cause__

    return call


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user that called this library."""
    frame, level = sys._getframe(1), 2
    while frame.f_code.co_filename.startswith(HIDDEN) and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


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
