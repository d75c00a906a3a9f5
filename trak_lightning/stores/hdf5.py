"""Features in HDF5: one file a block, under its final name only when it is whole."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import (
    CorruptFileError,
    IncompleteRunError,
    SettingsError,
    StorageError,
)
from trak_lightning.run.atomic import sweep
from trak_lightning.run.fingerprint import require_same
from trak_lightning.stores.arrays import from_arrays, to_arrays
from trak_lightning.stores.base import FeatureRows, FeatureSet, FeatureSpec, FeatureStore
from trak_lightning.stores.block_file import (
    COMPRESSIONS,
    BlockFile,
    BlockKey,
    Compression,
    open_block_file,
    read_block_file,
    write_block_file,
)
from trak_lightning.stores.buffers import Buffers
from trak_lightning.stores.encoding import DTYPES, SCALED, STORED, Dtype, decode
from trak_lightning.stores.form import Forms, read_into
from trak_lightning.stores.manifest import FILE, Manifest
from trak_lightning.stores.prefetch import prefetched
from trak_lightning.stores.shared import SharedSet
from trak_lightning.stores.validation import identity, require_name, require_rows

Array = npt.NDArray[Any]


class HDF5Store(FeatureStore):
    """Block files and a manifest for each feature set; docs/storage.md describes them.

    ::

        ROOT/<split>/<checkpoint>/manifest.json
        ROOT/<split>/<checkpoint>/block-00000.h5 …

    Args:
        dtype: in which features are stored: ``float32``, ``float64``, ``float16``, ``bfloat16`` or ``int8``; see
            `trak_lightning.stores.encoding`. What each costs in quality is in docs/storage.md.
        compression: ``lz4`` or ``zstd`` after a bit shuffle (needs the package hdf5plugin); gradients hardly compress.
        verify: whether blocks that are read whole are compared with their checksums.
    """

    def __init__(self, dtype: Dtype = "float32", compression: Compression = "none", verify: bool = True) -> None:
        for name, value, known in (("dtype", dtype, DTYPES), ("compression", compression, COMPRESSIONS)):
            if value not in known:
                raise SettingsError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        self.dtype = dtype
        self.compression: Compression = compression
        self.verify = verify
        self._buffers = Buffers()

    def bind(self, root: Path) -> None:
        self._root = root

    def create(self, spec: FeatureSpec) -> FeatureSet:
        folder = self._folder(spec.split, spec.checkpoint)
        if not (folder / FILE).exists():
            Manifest.of(spec, self.dtype).create(folder)
        sweep(folder)
        return self._require(self._set(folder), spec)

    def grow(self, before: FeatureSpec, after: FeatureSpec) -> FeatureSet:
        found = self.open(after.split, after.checkpoint)
        assert isinstance(found, HDF5Set)
        if found.spec.num_samples != after.num_samples:
            self._require(found, before)
            found.manifest.grown(after).replace_in(found.folder)
        return self.create(after)

    def open(self, split: str, checkpoint: str) -> FeatureSet:
        folder = self._folder(split, checkpoint)
        if not (folder / FILE).exists():
            raise IncompleteRunError(
                f"there are no features of {split!r} under checkpoint {checkpoint} in {self._root}; there are "
                f"{', '.join('/'.join(key) for key in self.list()) or 'none'}. Run trak featurize first."
            )
        return self._set(folder)

    def list(self) -> list[tuple[str, str]]:
        return sorted((path.parent.parent.name, path.parent.name) for path in self._root.glob(f"*/*/{FILE}"))

    def _folder(self, split: str, checkpoint: str) -> Path:
        require_name(split)
        require_name(checkpoint)
        return self._root / split / checkpoint

    def _set(self, folder: Path) -> "HDF5Set":
        return HDF5Set(folder, self.compression, self.verify, self._buffers)

    def _require(self, found: "HDF5Set", spec: FeatureSpec) -> "HDF5Set":
        require_same(
            identity(found.spec) | {"store.dtype": found.manifest.dtype},
            identity(spec) | {"store.dtype": self.dtype},
            found.folder,
        )
        return found


class HDF5Set(SharedSet):
    """A folder of block files. `buffers` is memory that one block after the other is read to, also those of other sets."""

    def __init__(
        self,
        folder: Path,
        compression: Compression = "none",
        verify: bool = True,
        buffers: Buffers | None = None,
    ) -> None:
        super().__init__(Manifest.read(folder), folder / "claims.lock")
        self._buffers = Buffers() if buffers is None else buffers
        self.folder = folder
        self._compression: Compression = compression
        self._verify = verify
        self._offsets: dict[int, dict[str, int | None]] = {}
        self._known, self._written = Forms(), Forms()

    # --- Writing -----------------------------------------------------------------------------------------------------

    def write_block(self, block: int, rows: FeatureRows) -> None:
        require_rows(self.spec, block, rows)
        arrays = to_arrays(rows, self.manifest.dtype, f"block {block}")
        write_block_file(self._path(block), self._key(block), arrays, self._compression, self._written)
        self._offsets.pop(block, None)

    def stored_blocks(self) -> set[int]:
        there = {path.name for path in self.folder.glob("block-*.h5")}
        return {block for block in range(self.spec.num_blocks) if self._path(block).name in there}

    def stored_rows(self, block: int) -> int:
        if not self._path(block).exists():
            return 0
        for rows in self.once_last.get(block, ()):
            try:
                with self._open(block, self._key(block, rows)):
                    return rows
            except CorruptFileError:
                continue
        return len(self.spec.block_range(block))

    def first_rows(self, block: int, rows: int) -> FeatureRows:
        return self._read(block, key=self._key(block, rows))

    # --- Reading -----------------------------------------------------------------------------------------------------

    def read_block(self, block: int) -> FeatureRows:
        return self._read(block)

    def blocks(self, which: range | None = None, *, ahead: int = 2) -> Iterator[FeatureRows]:
        chosen = range(self.spec.num_blocks) if which is None else which
        return prefetched(lambda block: self._read(block, self._buffers), chosen, ahead)

    def verify_block(self, block: int) -> None:
        read_block_file(self._path(block), self._key(block), self._known, verify=True)

    def take(self, index: npt.ArrayLike) -> Array:
        positions = self._positions(index)
        dtype = self.manifest.dtype
        stored = np.empty((len(positions), self.spec.dim), STORED[dtype])
        scale = np.empty(len(positions), "<f4") if dtype in SCALED else None
        blocks, order, starts = self._by_block(positions)
        for block, begin, end in zip(blocks.tolist(), starts[:-1], starts[1:], strict=True):
            members = order[begin:end]
            self._gather(block, members, positions[members] - block * self.spec.block_size, stored, scale)
        return decode(stored, scale, dtype)

    def column(self, name: str) -> Array:
        def read(block: int) -> Array:
            with self._open(block) as file:
                return file.read(name, verify=self._verify)

        return np.concatenate(list(prefetched(read, range(self.spec.num_blocks), 2)))

    def memmap(self, block: int) -> Array:
        """The features of a block as they are stored, mapped into memory (b, k), read-only.

        A file that is cut short while it is mapped ends the process (SIGBUS), which no other way of reading does.

        Raises:
            StorageError: the block is compressed.
        """
        offset = self._offsets_of(block)["features"]
        if offset is None:
            raise StorageError(f"{self._path(block)} is compressed and cannot be mapped into memory")
        shape, dtype = self._key(block).types["features"]
        return np.memmap(self._path(block), dtype, "r", offset, shape)

    def nbytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def strays(self) -> list[str]:
        expected = {self._path(block).name for block in range(self.spec.num_blocks)}
        found = []
        for path in sorted(self.folder.iterdir()):
            if path.name.endswith(".part"):
                found.append(f"{path}: left by a process that died, or being written now")
            elif path.name.startswith("block-") and path.name not in expected:
                found.append(f"{path}: the set has only blocks 0 … {self.spec.num_blocks - 1}")
        return found

    # -----------------------------------------------------------------------------------------------------------------

    def _gather(self, block: int, members: Array, rows: Array, stored: Array, scale: Array | None) -> None:
        """Rows of one block into ``stored[members]`` and ``scale[members]``."""
        offsets, path = self._offsets_of(block), self._path(block)
        try:
            if offsets["features"] is None or len(rows) * 4 > self._key(block).rows:
                with self._open(block) as file:
                    stored[members] = file.read("features", verify=self._verify)[rows]
                    if scale is not None:
                        scale[members] = file.read("scale", verify=self._verify)[rows]
                return
            with path.open("rb", buffering=0) as raw:
                for member, row in zip(members.tolist(), rows.tolist(), strict=True):
                    read_into(raw.fileno(), stored[member], offsets["features"] + row * stored[member].nbytes)
                    if scale is not None:
                        read_into(raw.fileno(), scale[member : member + 1], (offsets["scale"] or 0) + 4 * row)
        except (OSError, EOFError) as error:
            raise CorruptFileError(f"{path} was changed or deleted while it was read: {error}") from error

    def _offsets_of(self, block: int) -> dict[str, int | None]:
        if block not in self._offsets:
            key = self._key(block)
            with self._open(block, key) as file:
                self._offsets[block] = {name: file.offset(name) for name in ("features", "scale") if name in key.types}
        return self._offsets[block]

    def _read(self, block: int, buffers: Buffers | None = None, key: BlockKey | None = None) -> FeatureRows:
        key = key or self._key(block)
        arrays = read_block_file(self._path(block), key, self._known, verify=self._verify, buffers=buffers)
        return from_arrays(arrays, key.start, self.manifest.dtype)

    def _open(self, block: int, key: BlockKey | None = None) -> AbstractContextManager[BlockFile]:
        return open_block_file(self._path(block), key or self._key(block), self._known)

    def _key(self, block: int, rows: int | None = None) -> BlockKey:
        samples = self.spec.block_range(block)
        return BlockKey(
            self.manifest.set_id,
            block,
            samples.start,
            len(samples) if rows is None else rows,
            self.spec.dim,
            self.manifest.dtype,
        )

    def _path(self, block: int) -> Path:
        return self.folder / f"block-{block:05d}.h5"
