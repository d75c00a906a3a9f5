"""Feature sets that are computed from others as they are read."""

from dataclasses import dataclass

from trak_lightning.errors import StorageError
from trak_lightning.stores.base import FeatureRows, FeatureSet, FeatureSpec


@dataclass(frozen=True)
class FeatureView(FeatureSet):
    """A read-only feature set over another. Subclasses say what a block is."""

    source: FeatureSet
    spec: FeatureSpec

    def write_block(self, block: int, rows: FeatureRows) -> None:
        raise StorageError(f"{type(self).__name__} is computed from {self.source.spec.split} and cannot be written")

    def missing_blocks(self) -> list[int]:
        return self.source.missing_blocks()
