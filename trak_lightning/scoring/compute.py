"""Where products are made, and how processes share the work: numpy in this process here, devices in `fabric`."""

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Value = TypeVar("Value")

PANEL = 1024
"""Columns of a Gram matrix that are added to at a time."""


class Left(Protocol):
    """Rows that many others are multiplied with."""

    def __call__(self, rows: Array, out: Array) -> None:
        """``out = left @ rowsᵀ`` for rows (c, k), in the precision of the rows."""


class Squares(Protocol):
    """A sum of AᵀA over pieces A (c, k), in float64."""

    def add(self, piece: Array) -> None:
        """Add one; its product is in its own precision."""

    def result(self) -> Array:
        """The lower triangle (k, k); the upper one is zero. Nothing is added after that."""


class Compute:
    """One process, on the CPU.

    Every process of a job calls the same methods in the same order: those that exchange anything wait for the others.
    """

    rank: int = 0
    world_size: int = 1

    def left(self, rows: Array) -> Left:
        """Rows (b, k) to multiply with."""
        return _NumpyLeft(rows)

    def squares(self, k: int) -> Squares:
        """A sum of squares to add to, over the pieces of this process."""
        return _NumpySquares(k)

    def share(self, count: int) -> range:
        """Which of `count` things in a row are this process's."""
        return range(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def total(self, values: Array) -> Array:
        """The sum of `values` over all processes, the same bits in each; `values` may be overwritten."""
        return values

    def gather(self, values: Array) -> list[Array]:
        """The `values` of all processes, by rank; their shapes must agree."""
        return [values]

    def agreed(self, value: Value) -> Value:
        """What process 0 has."""
        return value

    def barrier(self) -> None:
        """Wait until all processes are here."""


LOCAL = Compute()


class _NumpyLeft:
    def __init__(self, rows: Array) -> None:
        self._rows = rows

    def __call__(self, rows: Array, out: Array) -> None:
        self._rows = self._rows.astype(rows.dtype, copy=False)  # once: after that it has that precision
        np.matmul(self._rows, rows.T, out=out)


class _NumpySquares:
    def __init__(self, k: int) -> None:
        self._total = np.zeros((k, k))

    def add(self, piece: Array) -> None:
        for first, last in self._panels():
            # The matrix is symmetric: what lies above the diagonal blocks is not computed.
            self._total[first:last, :last] += piece[:, first:last].T @ piece[:, :last]

    def result(self) -> Array:
        for first, last in self._panels():
            self._total[first:last, first:last] = np.tril(self._total[first:last, first:last])
        return self._total

    def _panels(self) -> Iterator[tuple[int, int]]:
        k = len(self._total)
        return ((first, min(first + PANEL, k)) for first in range(0, k, PANEL))
