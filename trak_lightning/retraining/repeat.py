"""Before models are added to stored ones, one of these is trained again: has the code changed since? Does not import torch."""

import logging
from collections.abc import Callable

import numpy as np

from trak_lightning.errors import IncompatibleRunError
from trak_lightning.run.arrays import Array, rms
from trak_lightning.run.formatting import format_percent

log = logging.getLogger(__name__)

MOST = 0.1
"""Largest difference between a stored model and the same one trained again, relative to how much models differ."""

ROUNDING = 1e-5
"""Differences below this share of the values themselves are those of rounding."""


def require_repeatable(stored: Array, train: Callable[[], Array], scale: float, *, what: str, remedy: str) -> None:
    """Compare a stored model with the same one trained again, with the same seed and on the same samples.

    If the two differ, the model is trained once more: if training is not repeatable, that is a warning, since nothing can be compared.

    Args:
        stored: what is compared: outputs, or weights.
        train: trains the model again, and returns the same of it.
        scale: how much models differ, root mean square.
        what: the stored model, in words.
        remedy: how to start over.

    Raises:
        IncompatibleRunError: the model, the data or the training has changed.
    """
    found = train()
    difference = rms(found - stored)
    if difference <= max(MOST * scale, ROUNDING * rms(stored)):
        return
    seen = f"{what} and the same trained again, with its seed and on its samples, differ by {difference:.3g}, {format_percent(difference / max(scale, 1e-30))} of {scale:.3g},"
    if rms(train() - found) > difference / 2:
        log.warning(
            "retrain    %s as trained twice in a row do, too: training is not repeatable, so it cannot be told whether the "
            "code has changed since the stored models were trained.",
            seen,
        )
        return
    raise IncompatibleRunError(
        f"{seen} and training twice in a row gives the same: the code of the model, the data or the training has changed. Models of both "
        f"would be mixed. Restore the earlier code, or {remedy}; --verify_data off skips this comparison."
    )


def spread(outputs: list[Array]) -> float:
    """How much models differ in their outputs (m,), root mean square over models and targets; the size of the outputs if there is one."""
    return rms(np.std(outputs, axis=0, dtype=np.float64) if len(outputs) > 1 else outputs[0])
