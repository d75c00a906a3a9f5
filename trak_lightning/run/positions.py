"""Positions of training samples, as users give them. Needs no torch."""

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import DataError
from trak_lightning.run.arrays import Array


def positions(samples: npt.ArrayLike, n: int, what: str) -> Array:
    """Return the positions (s,), in the order given, that distinct integers name or a mask (n,) of bools selects.

    Raises:
        DataError: they are neither, lie outside of 0 … n − 1, or repeat. `what` names them, in the singular.
    """
    found = np.asarray(samples)
    if found.dtype == bool and found.shape == (n,):
        found = np.flatnonzero(found)
    if found.ndim != 1 or (found.dtype.kind not in "iu" and found.size):
        got = f"{found.dtype} of shape {found.shape}"
        if isinstance(samples, str):
            got = f"the text {samples!r}. where({samples!r}) of the TRAK object returns the positions that fulfill a condition on columns"
        raise DataError(f"{what}: expected positions, integers of shape (s,), or a mask of {n} bools; got {got}")
    found = found.astype(np.int64)
    if len(outside := found[(found < 0) | (found >= n)]):
        raise DataError(f"{what} {outside[0]} is out of range: the training set has samples 0 … {n - 1}")
    distinct, counts = np.unique(found, return_counts=True)
    if len(distinct) < len(found):
        raise DataError(
            f"{what} {distinct[counts > 1][0]} is given {counts.max()} times; positions must be distinct. If these {len(found)} integers "
            "are a mask, make it boolean: mask.astype(bool)."
        )
    return found


def some(samples: npt.ArrayLike, n: int, what: str) -> Array:
    """Return `positions` in ascending order.

    Raises:
        DataError: as `positions`; or they are none or all of the training samples.
    """
    found = np.sort(positions(samples, n, what))
    if not 0 < len(found) < n:
        seen = (
            f"holds all {n} training samples; leave at least one out"
            if len(found)
            else "is empty; give at least one position"
        )
        raise DataError(f"the set of {what}s must hold some of the {n} training samples and not all, and it {seen}")
    return found
