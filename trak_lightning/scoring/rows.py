"""Read training rows in order; each process reads its share."""

from collections.abc import Iterator

import numpy as np

from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.stores.base import FeatureRows, FeatureSet

AHEAD_BYTES = 2**28
"""Bytes that blocks read in advance may occupy together."""


def as_computed(features: Array) -> Array:
    """Return features in the precision of products: float64 stays, everything else becomes float32."""
    return features if features.dtype == np.float64 else features.astype(np.float32, copy=False)


def share(features: CheckpointFeatures, source: FeatureSet | None = None) -> range:
    """Return the rows of this process, of `source` or of the training samples: whole blocks."""
    spec = (source or features.train).spec
    blocks = features.backend.share(spec.num_blocks)
    return range(*(min(edge * spec.block_size, spec.num_samples) for edge in (blocks.start, blocks.stop)))


def shared_blocks(features: CheckpointFeatures, source: FeatureSet | None = None) -> Iterator[FeatureRows]:
    """Read the blocks of this process, of `source` or of the training samples, in order."""
    source = source or features.train
    return source.blocks(features.backend.share(source.spec.num_blocks))


class RowReader:
    """Reads consecutive rows of a feature set in pieces of any size; each block is read once.

    Args:
        features: the feature set.
        samples: the rows to read, in order.
        ahead: number of blocks to read in advance.
    """

    def __init__(self, features: FeatureSet, samples: range, ahead: int = 0) -> None:
        size = features.spec.block_size
        self._blocks = features.blocks(range(samples.start // size, -(-samples.stop // size)), ahead=ahead)
        self._rows: FeatureRows | None = None
        self._position = samples.start

    def read(self, count: int) -> Iterator[FeatureRows]:
        """Yield the next `count` rows, in pieces that do not cross blocks."""
        stop = self._position + count
        while self._position < stop:
            if self._rows is None or self._position > self._rows.index[-1]:
                self._rows = next(self._blocks)
            first = int(self._rows.index[0])
            piece = self._rows[self._position - first : stop - first]
            self._position += len(piece)
            yield piece


def reads_ahead(checkpoints: int, features: FeatureSet) -> int:
    """Return how many blocks of each checkpoint's set may be read in advance."""
    return int(checkpoints * features.spec.block_size * features.spec.dim * 4 <= AHEAD_BYTES)
