"""Scores that are sums of inner products over checkpoints: what all built-in scorers are."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from trak_lightning.scoring.base import Array, CheckpointFeatures, Scoring, require_compatible
from trak_lightning.stores.base import FeatureRows, FeatureSet

Average: TypeAlias = Literal["factors", "scores"]

TILE_BYTES = 2**23
"""Size of a tile: large enough for matrix products to run at full speed, small enough to stay near the processor."""


def unchanged(rows: Array) -> Array:
    return rows


def loss_weight(rows: FeatureRows) -> Array:
    """q of every row: (b,)."""
    return rows.loss_weight


@dataclass(frozen=True)
class Part:
    """What one checkpoint contributes: ``coefficient(z_i) · left(φ(z)) · φ(z_i)``."""

    left: Callable[[Array], Array] = unchanged
    """Maps features of targets, (b, k) → (b, k)."""
    coefficient: Callable[[FeatureRows], Array] = loss_weight
    """One number for each training row, (b,)."""


class InnerProducts(Scoring):
    """``τ(z)_i`` from one `Part` a checkpoint.

    ``average="factors"`` averages inner products and coefficients over checkpoints, then multiplies:
    ``( (1/M) Σ_m left_m(z)·φ_m(z_i) ) · ( (1/M) Σ_m c_m,i )`` (Park et al. 2023, section 3.3). ``average="scores"``
    multiplies first: ``(1/M) Σ_m c_m,i · left_m(z)·φ_m(z_i)``.

    Products are in the precision of the stored features, at least float32; sums over checkpoints in float64.
    """

    def __init__(
        self, checkpoints: Sequence[CheckpointFeatures], parts: Sequence[Part], average: Average = "factors"
    ) -> None:
        require_compatible(checkpoints)
        super().__init__(checkpoints)
        self.parts = tuple(parts)
        self._checkpoints = tuple(checkpoints)
        self._average = average

    def without(self, checkpoint: int) -> "InnerProducts":
        """The same scores from all checkpoints but one, by position."""
        kept = [m for m in range(len(self.parts)) if m != checkpoint]
        return InnerProducts([self._checkpoints[m] for m in kept], [self.parts[m] for m in kept], self._average)

    def tiles(self, start: int, stop: int) -> Iterator[Array]:
        for products, coefficients in self._contributions(start, stop):
            if self._average == "factors":
                yield products.mean(0) * coefficients.mean(0)
            else:
                yield (products * coefficients[:, None]).mean(0)

    def spread_tiles(self, start: int, stop: int) -> Iterator[tuple[Array, Array]]:
        """As `tiles`, each with the standard error of its scores over checkpoints; NaN with one checkpoint."""
        M = len(self._checkpoints)
        for products, coefficients in self._contributions(start, stop):
            scores = products * (coefficients.mean(0) if self._average == "factors" else coefficients[:, None])
            error = scores.std(0, ddof=1) / np.sqrt(M) if M > 1 else np.full(scores.shape[1:], np.nan)
            yield scores.mean(0), error

    def _contributions(self, start: int, stop: int) -> Iterator[tuple[Array, Array]]:
        """Inner products (M, b, c) and coefficients (M, c), a column block at a time."""
        left = [
            part.left(read_features(features.targets, start, stop))
            for part, features in zip(self.parts, self._checkpoints, strict=True)
        ]
        M, b = len(left), stop - start
        readers = [AlignedReader(features.train) for features in self._checkpoints]
        width = max(1, TILE_BYTES // (8 * M * b))
        for first in range(0, self.num_train, width):
            last = min(first + width, self.num_train)
            products, coefficients = np.empty((M, b, last - first)), np.empty((M, last - first))
            for m, (part, reader) in enumerate(zip(self.parts, readers, strict=True)):
                done = first
                for rows in reader.read(first, last):
                    columns = slice(done - first, done - first + len(rows))
                    stored = as_computed(rows.features)
                    products[m, :, columns] = left[m].astype(stored.dtype, copy=False) @ stored.T
                    coefficients[m, columns] = part.coefficient(rows)
                    done += len(rows)
            yield products, coefficients


class AlignedReader:
    """Consecutive rows of a feature set, whatever its blocks; the block read last is kept."""

    def __init__(self, features: FeatureSet) -> None:
        self._features = features
        self._block = -1

    def read(self, start: int, stop: int) -> Iterator[FeatureRows]:
        """The rows ``start … stop`` in order, in pieces that lie in one block each."""
        size = self._features.spec.block_size
        for block in range(start // size, -(-stop // size)):
            if block != self._block:
                self._rows, self._block = self._features.read_block(block), block
            piece = slice(max(start - block * size, 0), stop - block * size)
            rows = self._rows
            yield FeatureRows(
                rows.index[piece],
                rows.features[piece],
                rows.output[piece],
                rows.loss_weight[piece],
                rows.curvature[piece],
            )


def read_features(features: FeatureSet, start: int, stop: int) -> Array:
    """Features (stop − start, k) of consecutive samples."""
    return np.concatenate([rows.features for rows in AlignedReader(features).read(start, stop)])


def as_computed(features: Array) -> Array:
    """Features in the dtype that products are made in: float64 as they are, all else in float32."""
    return features if features.dtype == np.float64 else features.astype(np.float32, copy=False)
