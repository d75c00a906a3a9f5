"""Scores that are sums of inner products over checkpoints, as those of all built-in scorers are."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from trak_lightning.scoring.backend import PANEL
from trak_lightning.scoring.base import Array, CheckpointFeatures, Scoring, Tile, require_compatible
from trak_lightning.scoring.rows import RowReader, as_computed, reads_ahead, share
from trak_lightning.stores.base import FeatureRows

Average: TypeAlias = Literal["factors", "scores"]

TILE_BYTES = 2**23
"""Size of a tile: large enough for matrix products to run at full speed, small enough for the processor's caches."""


def unchanged(rows: Array) -> Array:
    """Return the rows themselves."""
    return rows


def loss_weight(rows: FeatureRows) -> Array:
    """Return the loss weight q of every row: (b,)."""
    return rows.loss_weight


@dataclass(frozen=True)
class Part:
    """The contribution of one checkpoint: ``coefficient(z_i) · left(φ(z)) · φ(z_i)``."""

    left: Callable[[Array], Array] = unchanged
    """Maps features of targets, (b, k) → (b, k)."""
    coefficient: Callable[[FeatureRows], Array] = loss_weight
    """Returns one number for each training row, (b,)."""


class Moments:
    """Mean and spread of a tile over checkpoints, in memory that does not grow with their number.

    Sums of values and of squares are relative to the first values, so that rounding does not depend on the mean.
    """

    def __init__(self) -> None:
        self._count = 0

    def add(self, values: Array) -> None:
        """Add the values (b, c) of one checkpoint. They are overwritten, and the first ones are kept."""
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
        """Return the mean (b, c); with one checkpoint, its values themselves."""
        return self._first if self._count == 1 else self._first + self._sum / self._count

    def standard_error(self, rows: Array, columns: Array) -> Array:
        """Return the standard error of the mean at some entries; NaN with one checkpoint."""
        M = self._count
        if M == 1:
            return np.full(len(rows), np.nan, self._first.dtype)
        total, squares = self._sum[rows, columns], self._squares[rows, columns]
        error: Array = np.sqrt(np.maximum(squares - total**2 / M, 0) / (M - 1) / M)
        return error


class InnerProducts(Scoring):
    """``τ(z)_i`` from one `Part` per checkpoint.

    ``average="factors"`` averages inner products and coefficients over checkpoints, then multiplies:
    ``( (1/M) Σ_m left_m(z)·φ_m(z_i) ) · ( (1/M) Σ_m c_m,i )`` (Park et al. 2023, section 3.3). ``average="scores"``
    multiplies first: ``(1/M) Σ_m c_m,i · left_m(z)·φ_m(z_i)``.

    Products are in the precision of the stored features, at least float32; coefficients are in float64.
    """

    def __init__(
        self, checkpoints: Sequence[CheckpointFeatures], parts: Sequence[Part], average: Average = "factors"
    ) -> None:
        require_compatible(checkpoints)
        super().__init__(checkpoints)
        self.parts = tuple(parts)
        self.checkpoints = tuple(checkpoints)
        self.average = average

    @property
    def share(self) -> range:
        return share(self.checkpoints[0])  # whole blocks: each is read by one process

    def tiles(self, start: int, stop: int) -> Iterator[Array]:
        for tile in self.columns(start, stop, range(self.num_train)):
            yield tile.scores.copy()

    def columns(self, start: int, stop: int, columns: range) -> Iterator[Tile]:
        left = [
            features.backend.left_factor(part.left(features.targets.rows(start, stop).features))
            for part, features in zip(self.parts, self.checkpoints, strict=True)
        ]
        M, b = len(left), stop - start
        readers = [RowReader(features.train, columns, reads_ahead(M, features.train)) for features in self.checkpoints]
        width = _width(b, self.checkpoints[0].train.spec.block_size)
        # One for the first checkpoint's products, which are kept, and one that the others share.
        buffers = [np.empty(0), np.empty(0)]
        for first in range(columns.start, columns.stop, width):
            c = min(width, columns.stop - first)
            moments, coefficients = Moments(), np.empty((M, c))
            for m in range(M):
                done, products = 0, None
                for rows in readers[m].read(c):
                    stored = as_computed(rows.features)
                    if products is None:
                        buffers[m > 0] = products = _buffer(buffers[m > 0], (b, c), stored.dtype)
                    piece = slice(done, done + len(rows))
                    left[m](stored, products[:, piece])
                    coefficients[m, piece] = self.parts[m].coefficient(rows)
                    done += len(rows)
                assert products is not None
                if self.average == "scores":
                    products *= coefficients[m].astype(products.dtype)
                moments.add(products)
            yield self.tile(moments, coefficients)

    def tile(self, moments: Moments, coefficients: Array) -> Tile:
        """Return the scores (b, c) of `moments`, to which the products of every checkpoint were added, with coefficients (M, c).

        For ``average="scores"``, the products are already multiplied by the coefficients.
        """
        scores = moments.mean()
        if self.average == "scores":
            return Tile(scores, moments.standard_error)
        mean = coefficients.mean(0)
        scores *= mean.astype(scores.dtype)
        return Tile(scores, lambda rows, columns: moments.standard_error(rows, columns) * np.abs(mean[columns]))


def _width(targets: int, block_size: int) -> int:
    """Return the columns of a tile: whole blocks of about `PANEL` columns, unless that is too large. The products of one
    block are then contiguous in memory, and are computed in place."""
    largest = max(1, TILE_BYTES // (4 * targets))
    return min(largest, block_size * max(1, PANEL // block_size))


def _buffer(old: Array, shape: tuple[int, int], dtype: np.dtype) -> Array:
    """Return memory that is reused: getting it from the operating system for each tile costs a quarter of the product."""
    size = shape[0] * shape[1]
    kept = old if old.dtype == dtype and old.size >= size else np.empty(size, dtype)
    return kept.reshape(-1)[:size].reshape(shape)
