"""Features in memory, lost when the process ends. For tests and small problems."""

from dataclasses import replace
from pathlib import Path

from trak_lightning.errors import IncompleteRunError
from trak_lightning.run.same_settings import require_same
from trak_lightning.stores.base import FeatureRows, FeatureSet, FeatureSpec, FeatureStore
from trak_lightning.stores.validation import COLUMNS, identity, no_such_set, require_rows


class MemoryStore(FeatureStore):
    """Keep features as they are given, in any dtype. Memory: n·k numbers per checkpoint and split."""

    def __init__(self) -> None:
        self._sets: dict[tuple[str, str], MemorySet] = {}

    def bind(self, root: Path) -> None:
        self._root = root

    def create(self, spec: FeatureSpec) -> FeatureSet:
        found = self._sets.get((spec.split, spec.checkpoint))
        if found is None:
            found = self._sets[spec.split, spec.checkpoint] = MemorySet(spec)
        require_same(identity(found.spec), identity(spec), f"the feature set {spec.split}/{spec.checkpoint}")
        return found

    def grow(self, before: FeatureSpec, after: FeatureSpec) -> FeatureSet:
        found = self.open(after.split, after.checkpoint)
        assert isinstance(found, MemorySet)
        if found.spec.num_samples != after.num_samples:
            require_same(identity(found.spec), identity(before), f"the feature set {after.split}/{after.checkpoint}")
            found.spec = replace(found.spec, num_samples=after.num_samples, fingerprint=after.fingerprint)
        return self.create(after)

    def open(self, split: str, checkpoint: str) -> FeatureSet:
        if (split, checkpoint) not in self._sets:
            raise no_such_set(split, checkpoint, "memory", self.list())
        return self._sets[split, checkpoint]

    def list(self) -> list[tuple[str, str]]:
        return sorted(self._sets)

    def forget(self, split: str, checkpoint: str) -> None:
        if (found := self._sets.get((split, checkpoint))) and not found.nbytes():
            del self._sets[split, checkpoint]


class MemorySet(FeatureSet):
    """A dictionary of blocks."""

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._blocks: dict[int, FeatureRows] = {}

    def write_block(self, block: int, rows: FeatureRows) -> None:
        require_rows(self.spec, block, rows)
        self._blocks[block] = replace(rows)

    def read_block(self, block: int) -> FeatureRows:
        if block in self.missing_blocks():
            raise IncompleteRunError(
                f"block {block} of {self.spec.split}/{self.spec.checkpoint} has not been featurized"
            )
        return self._blocks[block]

    def discard(self, block: int) -> None:
        self._blocks.pop(block, None)

    def missing_blocks(self) -> list[int]:
        lengths = {block: len(rows) for block, rows in self._blocks.items()}
        return [
            block for block in range(self.spec.num_blocks) if lengths.get(block) != len(self.spec.block_range(block))
        ]

    def known_rows(self, block: int) -> FeatureRows | None:
        rows = self._blocks.get(block)
        if rows is None:
            return None
        whole = len(rows) - len(rows) % self.spec.batch_size
        return rows[:whole] if whole else None

    def nbytes(self) -> int:
        return sum(getattr(rows, name).nbytes for rows in self._blocks.values() for name in COLUMNS)
