"""The batches that a rank computes: those of missing blocks, claimed one by one or dealt out beforehand."""

from collections.abc import Iterator, Sequence

from trak_lightning.stores.base import FeatureSet


class ClaimedBatches:
    """The batches of those missing blocks that can be claimed, each block claimed when its turn comes.

    Its length is that of all batches: how many other processes will have computed is not known before.
    """

    def __init__(self, feature_set: FeatureSet, blocks: Sequence[int]) -> None:
        self._feature_set = feature_set
        self._blocks = blocks
        self._claimed: list[int] = []

    def __len__(self) -> int:
        size = self._feature_set.spec.batch_size
        return sum(-(-len(self._feature_set.spec.block_range(block)) // size) for block in self._blocks)

    def __iter__(self) -> Iterator[range]:
        for block in self._blocks:
            if self._feature_set.claim(block):
                self._claimed.append(block)
                yield from _batches(self._feature_set, block)

    def release(self) -> None:
        """Give up the blocks that were claimed and not stored."""
        for block in self._claimed:
            self._feature_set.release(block)
        self._claimed = []


class LockstepBatches:
    """The batches of one rank where no rank can take a step alone: as many for each rank as for the one that has most.

    Blocks are dealt out beforehand. The first batch is the same for all ranks; it and the batches that fill up are computed
    and dropped.
    """

    def __init__(self, feature_set: FeatureSet, blocks: Sequence[int], rank: int, world_size: int) -> None:
        dealt = [
            [batch for block in blocks[each::world_size] for batch in _batches(feature_set, block)]
            for each in range(world_size)
        ]
        first, most = dealt[0][:1], max(map(len, dealt))
        self._batches = first + dealt[rank] + first * (most - len(dealt[rank]))
        self.kept = range(1, len(dealt[rank]) + 1)
        """The numbers of the batches that are not dropped."""

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[range]:
        return iter(self._batches)

    def release(self) -> None:
        """Do nothing: no block is claimed, and another job may compute the same blocks with the same result."""


def _batches(feature_set: FeatureSet, block: int) -> Iterator[range]:
    """The batches of a block, without those whose rows are known."""
    samples, size = feature_set.spec.block_range(block), feature_set.spec.batch_size
    known = feature_set.known_rows(block)
    for start in range(len(known) if known else 0, len(samples), size):
        yield samples[start : start + size]
