"""The interface of a feature store. Nothing here or in a store needs torch: rows are numpy arrays.

Shapes: n samples, k projected dimensions, b rows of one block.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class FeatureRows:
    """Consecutive rows of a feature set; one row a sample, in the order of the dataset."""

    index: npt.NDArray[np.int64]
    """(b,) positions of the samples in their dataset."""
    features: npt.NDArray[Any]
    """(b, k) projected gradients φ."""
    output: npt.NDArray[Any]
    """(b,) model outputs f."""
    loss_weight: npt.NDArray[Any]
    """(b,) q = −∂ℓ/∂f."""
    curvature: npt.NDArray[Any]
    """(b,) r = ∂²ℓ/∂f²."""

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class FeatureSpec:
    """What a feature set holds and how it is cut into blocks. Block i holds rows ``i·block_size … (i+1)·block_size``."""

    split: str
    checkpoint: str
    num_samples: int
    dim: int
    batch_size: int
    """Samples of one gradient batch. Recorded because the bits of a row depend on the composition of its batch."""
    block_size: int
    """Rows of one block, a multiple of `batch_size`; a block is stored whole or not at all."""
    fingerprint: dict[str, Any] = field(default_factory=dict)
    """JSON values that determine the rows (parameters, task, projector, seed, …). Sets are compatible if these agree."""

    @property
    def num_blocks(self) -> int:
        return -(-self.num_samples // self.block_size)

    def block_range(self, block: int) -> range:
        """The sample positions of a block."""
        return range(block * self.block_size, min((block + 1) * self.block_size, self.num_samples))


class FeatureSet(ABC):
    """The features of one split of the data under one checkpoint, made of blocks that are stored whole or not at all."""

    spec: FeatureSpec

    @abstractmethod
    def write_block(self, block: int, rows: FeatureRows) -> None:
        """Store a whole block. When this returns, the block survives the death of the process.

        Raises:
            StorageError: the block could not be stored; what was stored before is unharmed.
        """

    @abstractmethod
    def read_block(self, block: int) -> FeatureRows:
        """Read a whole block.

        Raises:
            CorruptFileError: what is stored is not a whole block of this set.
        """

    @abstractmethod
    def missing_blocks(self) -> list[int]:
        """The blocks not yet stored, in order."""

    @property
    def complete(self) -> bool:
        return not self.missing_blocks()

    def blocks(self) -> Iterator[FeatureRows]:
        """All blocks in order of the dataset; memory stays that of one block."""
        for block in range(self.spec.num_blocks):
            yield self.read_block(block)

    def column(self, name: str) -> npt.NDArray[Any]:
        """One value a sample, (n,): ``output``, ``loss_weight`` or ``curvature``."""
        return np.concatenate([getattr(rows, name) for rows in self.blocks()])


class FeatureStore(ABC):
    """A place for feature sets, one for each (split, checkpoint).

    Laws (checked by `trak_lightning.testing.StoreConformance`): what is written is read back bit for bit; a block that
    `write_block` acknowledged is there after the process was killed; a block that it did not is missing, never torn;
    sets made with other settings are refused with both values named.
    """

    @abstractmethod
    def bind(self, root: Path) -> None:
        """Use the folder `root` (it need not exist yet). Called once, before anything else."""

    @abstractmethod
    def create(self, spec: FeatureSpec) -> FeatureSet:
        """The set for `spec`: a new one, or the one already there to be gone on with.

        A set that is already there keeps its own `batch_size` and `block_size` (its remaining blocks must match).

        Raises:
            IncompatibleRunError: a set of that split and checkpoint is there and was made with other settings; names
                the first setting that differs, with both values.
        """

    @abstractmethod
    def open(self, split: str, checkpoint: str) -> FeatureSet:
        """The set already there.

        Raises:
            IncompleteRunError: there is none; names what there is.
        """

    @abstractmethod
    def list(self) -> list[tuple[str, str]]:
        """The (split, checkpoint) of every set there is, sorted."""
