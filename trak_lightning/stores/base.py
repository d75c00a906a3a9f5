"""The interface of feature stores. Rows are NumPy arrays; neither this module nor a store needs torch.

Shapes: n samples, k projected dimensions, b rows of one block.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xxhash

from trak_lightning.errors import DataError, StorageError
from trak_lightning.stores.prefetch import prefetched

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FeatureRows:
    """Rows of a feature set, one per sample, in the order of the dataset."""

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
    content: npt.NDArray[Any] = None  # type: ignore[assignment]
    """(b,) xxh3_64 of the content of each sample, uint64; 0 where it is unknown, which is the default."""

    def __post_init__(self) -> None:
        if self.content is None:
            object.__setattr__(self, "content", np.zeros(len(self.index), np.uint64))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice) -> "FeatureRows":
        """Some of the rows, as views."""
        return FeatureRows(*(getattr(self, field.name)[rows] for field in fields(self)))

    def at(self, rows: npt.NDArray[np.int64]) -> "FeatureRows":
        """The rows at some positions, in that order, as copies."""
        return FeatureRows(*(getattr(self, field.name)[rows] for field in fields(self)))


def concatenate(parts: Sequence[FeatureRows]) -> FeatureRows:
    """Join the rows of all parts, in order."""
    columns = ([getattr(part, field.name) for part in parts] for field in fields(FeatureRows))
    return FeatureRows(*(np.concatenate(column) for column in columns))


@dataclass(frozen=True)
class FeatureSpec:
    """What a feature set holds, and how it is divided into blocks: block i holds rows ``i·block_size … (i+1)·block_size − 1``."""

    split: str
    checkpoint: str
    num_samples: int
    dim: int
    batch_size: int
    """Samples per gradient batch. It is recorded because the bits of a row depend on the composition of its batch."""
    block_size: int
    """Rows per block, a multiple of `batch_size`."""
    fingerprint: dict[str, Any] = field(default_factory=dict)
    """JSON values that determine the rows (parameters, task, projector, seed, …). Sets are compatible if these agree."""

    @property
    def num_blocks(self) -> int:
        return -(-self.num_samples // self.block_size)

    def block_range(self, block: int) -> range:
        """The positions of the samples of a block."""
        return range(block * self.block_size, min((block + 1) * self.block_size, self.num_samples))


class FeatureSet(ABC):
    """The features of one split under one checkpoint, in blocks of consecutive rows that are stored whole or not at all.

    Several threads may read at once.
    """

    spec: FeatureSpec

    @property
    def dtype(self) -> str:
        """The number format in which features are stored; here, that in which the first stored block is read."""
        missing = set(self.missing_blocks())
        stored = next((block for block in range(self.spec.num_blocks) if block not in missing), None)
        return "float32" if stored is None else self.read_block(stored).features.dtype.name

    @abstractmethod
    def write_block(self, block: int, rows: FeatureRows) -> None:
        """Store a whole block. Once this returns, the block survives the death of the process.

        Raises:
            StorageError: the block could not be stored; everything stored before is intact.
        """

    @abstractmethod
    def read_block(self, block: int) -> FeatureRows:
        """Read a whole block.

        Raises:
            IncompleteRunError: the block is missing.
            CorruptFileError: what is stored is not this block of this set.
        """

    @abstractmethod
    def missing_blocks(self) -> list[int]:
        """The blocks that are not stored yet, in order."""

    def missing_in(self, blocks: range) -> list[int]:
        """Those of `blocks` that are not stored yet, in order."""
        return [block for block in self.missing_blocks() if block in blocks]

    def discard(self, block: int) -> None:
        """Delete a stored block, so that it is missing and will be computed again.

        Raises:
            StorageError: the store cannot delete blocks.
        """
        raise StorageError(
            f"{type(self).__name__} cannot delete a block: delete the features of {self.spec.split!r}, or use another run directory"
        )

    @property
    def complete(self) -> bool:
        return not self.missing_blocks()

    # --- Reading -----------------------------------------------------------------------------------------------------

    def blocks(self, which: range | None = None, *, ahead: int = 2) -> Iterator[FeatureRows]:
        """Read all blocks, or those given, in order, while the next `ahead` are read in background threads.

        At most ``ahead + 1`` blocks are in memory at a time.
        """
        return prefetched(self.read_block, range(self.spec.num_blocks) if which is None else which, ahead)

    def rows(self, start: int, stop: int) -> FeatureRows:
        """Read the rows of samples ``start … stop − 1``.

        Raises:
            DataError: the range is empty or leaves the dataset.
        """
        self._require(start, stop)
        size = self.spec.block_size
        parts = [self._part(block, start, stop) for block in range(start // size, -(-stop // size))]
        return parts[0] if len(parts) == 1 else concatenate(parts)

    def take(self, index: npt.ArrayLike) -> npt.NDArray[Any]:
        """Read the features (s, k) of any samples, in the order given; positions (s,) may repeat.

        Raises:
            DataError: a position does not lie in the dataset.
        """
        positions = self._positions(index)
        blocks, order, starts = self._by_block(positions)
        found: npt.NDArray[Any] | None = None
        for block, begin, end in zip(blocks, starts[:-1], starts[1:], strict=True):
            features = self.read_block(int(block)).features
            if found is None:
                found = np.empty((len(positions), self.spec.dim), features.dtype)
            members = order[begin:end]
            found[members] = features[positions[members] - int(block) * self.spec.block_size]
        return np.empty((0, self.spec.dim), np.float32) if found is None else found

    def tensor(self) -> "Tensor":
        """All features as a torch tensor, (n, k), on the CPU."""
        import torch  # here, because commands that only score start faster without it

        return torch.from_numpy(self.rows(0, self.spec.num_samples).features)

    def column(self, name: str, blocks: Sequence[int] | None = None) -> npt.NDArray[Any]:
        """Read one value per sample, (n,), or of the samples of some blocks: ``output``, ``loss_weight``, ``curvature`` or
        ``content``."""
        chosen = range(self.spec.num_blocks) if blocks is None else blocks
        return np.concatenate([getattr(self.read_block(block), name) for block in chosen])

    def digest(self) -> str:
        """A hash of all columns and of the features of a few samples: it differs if other rows are stored that were made with the same
        settings, such as those of data with corrected labels.

        Raises:
            IncompleteRunError: a block is missing.
        """
        n = self.spec.num_samples
        hasher = xxhash.xxh3_128(np.ascontiguousarray(self.take(sorted({0, n // 2, n - 1}))).data)
        for name in ("content", "output", "loss_weight", "curvature"):
            hasher.update(np.ascontiguousarray(self.column(name)).data)
        return hasher.hexdigest()

    def verify_block(self, block: int) -> None:
        """Read a block and compare it with its stored checksums, if the store keeps any.

        Raises:
            CorruptFileError: the block is not what was written.
        """
        self.read_block(block)

    def nbytes(self) -> int:
        """The size of the stored blocks in bytes; 0 if the store does not know."""
        return 0

    def strays(self) -> list[str]:
        """Files among the blocks that do not belong there, each with the reason."""
        return []

    # --- Sharing the work --------------------------------------------------------------------------------------------

    def claim(self, block: int) -> bool:
        """Reserve a block for this process; False if it is stored already, or if another living process computes it.

        A store without locks lets every process have every missing block; they then store the same rows.
        """
        return block in self.missing_blocks()

    def release(self, block: int) -> None:  # noqa: B027 (a store without locks has nothing to release)
        """Give up the claim to a block, stored or not."""

    def known_rows(self, block: int) -> FeatureRows | None:
        """The stored first rows of a missing block in which a shorter dataset ended, None if there are none.

        They are whole batches, so that featurizing again would give the same rows.
        """
        return None

    def _require(self, start: int, stop: int) -> None:
        if not 0 <= start < stop <= self.spec.num_samples:
            raise DataError(
                f"rows {start} … {stop} do not lie in {self.spec.split}/{self.spec.checkpoint}, which has "
                f"{self.spec.num_samples} samples"
            )

    def _part(self, block: int, start: int, stop: int) -> FeatureRows:
        first = block * self.spec.block_size
        return self.read_block(block)[max(start - first, 0) : stop - first]

    def _positions(self, index: npt.ArrayLike) -> npt.NDArray[np.int64]:
        positions = np.asarray(index)
        if positions.ndim != 1 or (positions.dtype.kind not in "iu" and positions.size):
            raise DataError(f"positions must be integers of shape (s,), got {positions.dtype} {positions.shape}")
        if positions.size and not 0 <= positions.min() <= positions.max() < self.spec.num_samples:
            raise DataError(
                f"positions {positions.min()} … {positions.max()} do not lie in {self.spec.split}/"
                f"{self.spec.checkpoint}, which has {self.spec.num_samples} samples"
            )
        return positions.astype(np.int64)

    def _by_block(
        self, positions: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The blocks that hold `positions`, the order that sorts these, and where each block begins in that order."""
        order = np.argsort(positions, kind="stable")
        blocks, starts = np.unique(positions[order] // self.spec.block_size, return_index=True)
        return blocks, order, np.append(starts, len(positions))


class FeatureStore(ABC):
    """A place for feature sets, one per (split, checkpoint).

    Laws (checked by `trak_lightning.testing.StoreConformance`): rows are read back bit for bit as they were written; once
    `write_block` has returned, a block survives a kill of the process; until then it is missing, never torn; a set that
    was made with other settings is refused, and the error names both values.
    """

    @abstractmethod
    def bind(self, root: Path) -> None:
        """Use the folder `root`, which need not exist yet. Called once, before any other method."""

    @property
    def elsewhere(self) -> str | None:
        """Where features are stored, if not in the folder given to `bind`."""
        return None

    @abstractmethod
    def create(self, spec: FeatureSpec) -> FeatureSet:
        """Create the set for `spec`, or open the existing one to resume it.

        An existing set keeps its own `batch_size` and `block_size`, since its remaining blocks must match.

        Raises:
            IncompatibleRunError: the existing set was made with other settings; names the first one that differs, with
                both values.
        """

    @abstractmethod
    def grow(self, before: FeatureSpec, after: FeatureSpec) -> FeatureSet:
        """Extend the set of `before` to the samples of `after`: those of `before`, followed by new ones.

        Stored rows stay. The block in which the shorter dataset ended counts as missing until it is written whole; its
        first rows are known (`FeatureSet.known_rows`). A set that has the samples of `after` already is resumed.

        Raises:
            IncompatibleRunError: as `create`.
            IncompleteRunError: there is no such set.
        """

    @abstractmethod
    def open(self, split: str, checkpoint: str) -> FeatureSet:
        """Open an existing set.

        Raises:
            IncompleteRunError: there is no such set; lists those that exist.
        """

    @abstractmethod
    def list(self) -> list[tuple[str, str]]:
        """The (split, checkpoint) of every set, sorted."""

    def forget(self, split: str, checkpoint: str) -> None:  # noqa: B027 (a store may keep what is empty)
        """Delete a set of which nothing is stored and which no process fills, so that other settings may be tried; else do nothing."""


def any_fingerprint(store: FeatureStore) -> dict[str, Any] | None:
    """The fingerprint of one of the feature sets; None if there are none."""
    return next((store.open(*name).spec.fingerprint for name in store.list()), None)


def drawn_split(split: str, number: int) -> str:
    """Return the split that holds the training samples with labels drawn from the model, for draw `number`, 1, 2, …"""
    return f"{split}.draw-{number}"


def draw_of(split: str) -> int | None:
    """Return the number of the draw whose labels a split has; None for any other split."""
    found = re.search(r"\.draw-(\d+)$", split)
    return int(found[1]) if found else None
