"""Every error that trak_lightning raises on purpose.

All derive from `TrakError`, so that one ``except`` clause catches them and the command line prints the message alone,
without a traceback. A message names the thing at fault, the value seen, the value expected, and what to do next.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import metadata
from numbers import Integral
from typing import Any


class TrakError(Exception):
    """Base class of all errors raised on purpose by trak_lightning."""


class PluginError(TrakError):
    """A plug-in is unknown, clashes with another, cannot be imported, or is of the wrong type."""


class SettingsError(TrakError):
    """A setting has a value that it cannot have."""


class IncompatibleRunError(TrakError):
    """A run directory was made with other settings (projector, seed, checkpoint, data) than those asked for."""


class StaleRowsError(IncompatibleRunError):
    """Stored rows are not those of the samples, the model, the task or the code of now."""


class IncompleteRunError(TrakError):
    """A stage needs the results of an earlier stage, and these are missing or unfinished."""


class CorruptFileError(TrakError):
    """A file in a run directory is not what its name or manifest says it is."""


class StorageError(TrakError):
    """The operating system refused a write: disk full, read-only directory, missing permission."""


class TerminatedError(TrakError):
    """The process was asked to end (SIGTERM) while it was featurising; what is stored is kept."""


class CheckpointError(TrakError):
    """A checkpoint cannot be read, or does not fit the model."""


class NonFiniteGradientError(TrakError):
    """NaN or infinity in an output, a loss weight or a per-sample gradient."""


class DeviceMemoryError(TrakError):
    """A batch of gradients does not fit into the memory of the device; what is stored is kept."""


class TrainModeError(TrakError):
    """A module whose behaviour differs between training and evaluation was left in train mode."""


class SampleDependenceError(TrakError):
    """The gradient of a sample depends on the other samples of its batch, or on chance."""


class UnsupportedModelError(TrakError):
    """An extractor cannot give exact per-sample gradients for some parameter of this model."""


class WrongRowsError(UnsupportedModelError):
    """An extractor computed wrong gradients for a batch of a kind that it was trusted with: rows before it may be wrong, too.

    Args:
        message: what is wrong, and what to do.
        mended: whether later batches are computed in another way, so that everything can be computed again.
    """

    def __init__(self, message: str, *, mended: bool) -> None:
        self.mended = mended
        super().__init__(message)


class OneSampleAtATime(UnsupportedModelError):
    """A task cannot give one output per sample for this batch; it can for a batch that holds a single sample.

    Raised by `Task.output`, for example where a loss function returns one number for the whole batch. Callers that can
    fetch samples one at a time do so; to anyone else it is an ordinary refusal.

    Args:
        message: what is wrong, and what to do.
        whole: the one number that the task did find for the batch, for `Task.require_agreement`.
    """

    def __init__(self, message: str, whole: Any = None) -> None:
        super().__init__(message)
        self.whole = whole


class DataError(TrakError):
    """A dataset, loader or batch is not what the task expects (labels out of range, unknown sampler, new length)."""


class NothingPredictedError(DataError):
    """A task predicts neither classes nor numbers, so that no target is right or wrong."""


def docs_page(name: str, section: str | None = None) -> str:
    """Say where the documentation has more: the address, if the distribution names that of its documentation; otherwise in words, since an
    installed package has no ``docs/``.

    >>> docs_page("recipes", "The nodes of one graph")
    'page recipes of the documentation, under "The nodes of one graph"'
    """
    for entry in metadata("trak-lightning").get_all("Project-URL") or ():
        label, _, url = entry.partition(", ")
        if label.lower() == "documentation":
            place = "" if section is None else "#" + re.sub(r"[^\w\- ]", "", section).lower().replace(" ", "-")
            return f"{url.rstrip('/')}/{name}/{place}"
    return f"page {name} of the documentation" + ("" if section is None else f', under "{section}"')


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; empty if it has none."""
    return next(iter(str(error).splitlines()), "")


@contextmanager
def needed_for(what: str, install: str, kind: type[TrakError] = DataError) -> Iterator[None]:
    """Inside, packages are imported that `what` needs; if one is missing, an error of this `kind` says how to `install` it."""
    try:
        yield
    except ImportError as error:
        raise kind(f"{what} needs a package that cannot be imported ({error}): pip install {install}") from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Ask whether the known name that is nearest to an unknown one was meant; a period if none is near.

    >>> did_you_mean("sparse_ml", ["gaussian", "sparse_jl"])
    "; did you mean 'sparse_jl'?"
    """
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else "."


def require_option(name: str, value: Any, known: Sequence[str | None]) -> Any:
    """Return `value`.

    Raises:
        SettingsError: it is not one of those `known`.
    """
    if value not in known:
        raise SettingsError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")
    return value


def as_number(value: Any) -> float:
    """Return the number that `value` is, or that it writes, as text of a command line does; NaN if it is neither."""
    try:
        return float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return float("nan")


def is_integer(value: Any) -> bool:
    """Whether `value` is an integer of Python or NumPy; a bool is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def require_integer(name: str, value: Any, least: int, what: str = "an integer") -> int:
    """Return `value` as an int.

    Raises:
        SettingsError: it is no integer, or less than `least`. `what` says in words what it should be.
    """
    if not is_integer(value) or value < least:
        raise SettingsError(f"{name} must be {what}, {least} or more, got {value!r}")
    return int(value)
