"""Where matrix products are computed, and how processes share the work: here numpy in one process; devices in `fabric`."""

from collections.abc import Iterator
from typing import Protocol, TypeVar

import numpy as np

from trak_lightning.run.arrays import Array

Value = TypeVar("Value")

PANEL = 1024
"""The most columns, or samples, of one matrix product: it bounds the memory of a product, and its rounding error."""


class LeftFactor(Protocol):
    """Rows (b, k) that are multiplied by many others."""

    def __call__(self, rows: Array, out: Array) -> None:
        """Compute ``out = left @ rowsᵀ`` for rows (c, k), in the precision of the rows."""


class GramSum(Protocol):
    """A sum of AᵀA over pieces A (c, k), in float64."""

    def add(self, piece: Array) -> None:
        """Add AᵀA of one piece, computed in the precision of the piece."""

    def result(self) -> Array:
        """Return the lower triangle (k, k) with zeros above it. Call it once, after the last `add`."""


class Backend:
    """One process, on the CPU.

    All processes of a job call the same methods in the same order: methods that exchange data wait for the others.
    """

    rank: int = 0
    world_size: int = 1

    def left_factor(self, rows: Array) -> LeftFactor:
        """Return rows (b, k) to multiply by others."""
        return _NumpyLeftFactor(rows)

    def gram_sum(self, k: int) -> GramSum:
        """Return an empty sum of squares for the pieces of this process."""
        return _NumpyGramSum(k)

    def share(self, count: int) -> range:
        """Return which of `count` items this process works on: consecutive ones."""
        return range(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def all_reduce(self, values: Array) -> Array:
        """Return the sum of `values` over all processes, with the same bits in each; `values` may be overwritten."""
        return values

    def gather(self, values: Array) -> list[Array]:
        """Return the `values` of all processes, by rank; their shapes must agree."""
        return [values]

    def broadcast(self, value: Value) -> Value:
        """Return the value of process 0."""
        return value

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""


LOCAL = Backend()


class _NumpyLeftFactor:
    def __init__(self, rows: Array) -> None:
        self._rows = rows

    def __call__(self, rows: Array, out: Array) -> None:
        self._rows = self._rows.astype(rows.dtype, copy=False)  # converts once: afterwards it has that precision
        np.matmul(self._rows, rows.T, out=out)


class _NumpyGramSum:
    def __init__(self, k: int) -> None:
        self._total = np.zeros((k, k))

    def add(self, piece: Array) -> None:
        for first, last in self._panels():
            # The matrix is symmetric: entries above the diagonal blocks are not computed.
            self._total[first:last, :last] += piece[:, first:last].T @ piece[:, :last]

    def result(self) -> Array:
        for first, last in self._panels():
            self._total[first:last, first:last] = np.tril(self._total[first:last, first:last])
        return self._total

    def _panels(self) -> Iterator[tuple[int, int]]:
        k = len(self._total)
        return ((first, min(first + PANEL, k)) for first in range(0, k, PANEL))
