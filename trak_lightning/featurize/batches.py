"""The batches that a rank computes. Ranks claim (reserve) missing blocks one by one, or divide them in advance."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trak_lightning.stores.base import FeatureSet


class ClaimedBatches:
    """The batches of the missing blocks that no other process has claimed; claim each block just before its first batch.

    The length counts all batches, an upper bound: other processes may claim some of the blocks first.

    Args:
        feature_set: the set.
        blocks: the blocks that are missing.
        lengths: (n,) how long each sample is: batches of a block then hold samples of similar length, the longest first. Rows
            are stored in the order of the dataset all the same.
    """

    def __init__(
        self, feature_set: FeatureSet, blocks: Sequence[int], lengths: npt.NDArray[np.integer[Any]] | None = None
    ) -> None:
        self._feature_set = feature_set
        self._lengths = lengths
        self._blocks = blocks
        self._claimed: list[int] = []

    def __len__(self) -> int:
        size = self._feature_set.spec.batch_size
        return sum(-(-len(self._feature_set.spec.block_range(block)) // size) for block in self._blocks)

    def __iter__(self) -> Iterator[Sequence[int]]:
        for block in self._blocks:
            if self._feature_set.claim(block):
                self._claimed.append(block)
                yield from _batches(self._feature_set, block, self._lengths)

    def release(self) -> None:
        """Release the claims on blocks that were not stored."""
        for block in self._claimed:
            self._feature_set.release(block)
        self._claimed = []


class LockstepBatches:
    """The batches of one rank where all ranks must step together: every rank has as many as the one that has most.

    Blocks are divided in advance. Every rank starts with the same batch and is padded with copies of it; the rows of these
    batches are dropped.

    Args:
        feature_set: the set.
        blocks: the blocks that are missing.
        rank: of this process.
        world_size: number of processes.
        lengths: as for `ClaimedBatches`.
    """

    def __init__(
        self,
        feature_set: FeatureSet,
        blocks: Sequence[int],
        rank: int,
        world_size: int,
        lengths: npt.NDArray[np.integer[Any]] | None = None,
    ) -> None:
        dealt = [
            [batch for block in blocks[each::world_size] for batch in _batches(feature_set, block, lengths)]
            for each in range(world_size)
        ]
        first, most = dealt[0][:1], max(map(len, dealt))
        self._batches = first + dealt[rank] + first * (most - len(dealt[rank]))
        self.kept = range(1, len(dealt[rank]) + 1)
        """The numbers of the batches whose rows are kept."""

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Sequence[int]]:
        return iter(self._batches)

    def release(self) -> None:
        """Do nothing: no block is claimed, and another job may compute the same blocks with the same result."""


def _batches(
    feature_set: FeatureSet, block: int, lengths: npt.NDArray[np.integer[Any]] | None
) -> Iterator[Sequence[int]]:
    """The batches of a block, except those whose rows are known."""
    samples, size = feature_set.spec.block_range(block), feature_set.spec.batch_size
    known = feature_set.known_rows(block)
    positions: Sequence[int] = samples[len(known) if known else 0 :]
    if lengths is not None:
        positions = [positions[place] for place in np.argsort(-lengths[list(positions)], kind="stable")]
    for start in range(0, len(positions), size):
        yield positions[start : start + size]
