"""The type of arrays, and their size in one number. Needs no torch."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def rms(values: Array) -> float:
    """Return the root mean square of some values; 0 if there are none."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
