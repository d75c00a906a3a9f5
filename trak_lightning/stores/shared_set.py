"""Feature sets that several processes fill at once and that may grow. For authors of stores."""

from abc import abstractmethod
from functools import cached_property
from pathlib import Path

from trak_lightning.stores.base import FeatureRows, FeatureSet
from trak_lightning.stores.claims import Claims
from trak_lightning.stores.manifest import Manifest


class SharedSet(FeatureSet):
    """A feature set whose blocks are claimed by locks on a file of the run directory, wherever the rows themselves are.

    Subclasses say what is stored; what is missing, what may be claimed and which rows are known follows from that.
    The `lock` file of the claims and its folder are created when they are needed.
    """

    def __init__(self, manifest: Manifest, lock: Path) -> None:
        self.manifest = manifest
        self.spec = manifest.spec
        self._claims = Claims(lock)

    @property
    def dtype(self) -> str:
        return self.manifest.dtype

    @abstractmethod
    def stored_blocks(self) -> set[int]:
        """The blocks of which at least some rows are stored, found without opening any."""

    @abstractmethod
    def stored_rows(self, block: int) -> int:
        """The number of stored rows of a block: 0, all, or fewer if a shorter dataset ended in it."""

    @abstractmethod
    def first_rows(self, block: int, rows: int) -> FeatureRows | None:
        """Read a block of which only the first `rows` are stored; None if they cannot be read anymore."""

    def missing_blocks(self) -> list[int]:
        there = self.stored_blocks()
        return [
            block
            for block in range(self.spec.num_blocks)
            if block not in there or (block in self.once_last and not self._stored(block))
        ]

    def claim(self, block: int) -> bool:
        if not self._claims.acquire(block):
            return False
        if self._stored(block):
            self._claims.release(block)
            return False
        return True

    def release(self, block: int) -> None:
        self._claims.release(block)

    def idle(self) -> bool:
        """Whether nothing is stored, and no other process has claimed a block."""
        blocks = range(0 if self.stored_blocks() else self.spec.num_blocks)
        claimed = [block for block in blocks if self._claims.acquire(block)]
        for block in claimed:
            self._claims.release(block)
        return len(claimed) == self.spec.num_blocks

    def known_rows(self, block: int) -> FeatureRows | None:
        rows = self.stored_rows(block) if block in self.once_last else 0
        whole = rows - rows % self.spec.batch_size
        if not whole or rows == len(self.spec.block_range(block)):
            return None
        first = self.first_rows(block, rows)
        return None if first is None else first[:whole]

    @cached_property
    def once_last(self) -> dict[int, list[int]]:
        """Block in which a shorter dataset ended → the numbers of rows that it had then."""
        found: dict[int, list[int]] = {}
        for before in self.manifest.grown_from:
            if before % self.spec.block_size:
                found.setdefault(before // self.spec.block_size, []).append(before % self.spec.block_size)
        return found

    def _stored(self, block: int) -> bool:
        return self.stored_rows(block) == len(self.spec.block_range(block))
