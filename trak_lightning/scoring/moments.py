"""Mean and spread of a tile over checkpoints, in memory that does not grow with their number."""

import numpy as np

from trak_lightning.scoring.base import Array


class Moments:
    """Sums of what is added and of its squares, both relative to the first: rounding does not depend on the mean."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, values: Array) -> None:
        """The values (b, c) of one checkpoint; they are overwritten, and the first ones kept."""
        self._count += 1
        if self._count == 1:
            self._first = values
            return
        values -= self._first
        if self._count == 2:
            self._sum, self._squares = np.zeros_like(values), np.zeros_like(values)
        self._sum += values
        np.square(values, out=values)
        self._squares += values

    def mean(self) -> Array:
        """(b, c); what `add` was first given, where that was all."""
        return self._first if self._count == 1 else self._first + self._sum / self._count

    def standard_error(self, rows: Array, columns: Array) -> Array:
        """Of the mean at some entries; NaN with one checkpoint."""
        M = self._count
        if M == 1:
            return np.full(len(rows), np.nan, self._first.dtype)
        total, squares = self._sum[rows, columns], self._squares[rows, columns]
        error: Array = np.sqrt(np.maximum(squares - total**2 / M, 0) / (M - 1) / M)
        return error
