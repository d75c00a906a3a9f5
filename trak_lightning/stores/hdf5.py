"""Features in HDF5: one file per block, under its final name only when it is whole."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import CorruptFileError, require_option
from trak_lightning.run.arrays import Array
from trak_lightning.run.atomic import sweep
from trak_lightning.seeds import fingerprint
from trak_lightning.stores.base import FeatureRows, FeatureSet, FeatureSpec, FeatureStore
from trak_lightning.stores.block_file import BlockFile, BlockKey, open_block_file, write_block_file
from trak_lightning.stores.encoding import COMPRESSIONS, DTYPES, SCALED, STORED, Compression, Dtype, decode
from trak_lightning.stores.manifest import FILE, Manifest
from trak_lightning.stores.prefetch import prefetched
from trak_lightning.stores.schema import from_arrays, to_arrays
from trak_lightning.stores.shared_set import SharedSet
from trak_lightning.stores.validation import no_such_set, require_name, require_rows


class HDF5Store(FeatureStore):
    """Store each feature set as block files and a manifest; page storage of the documentation describes the format.

    ::

        ROOT/<split>/<checkpoint>/manifest.json
        ROOT/<split>/<checkpoint>/block-00000.h5 …

    Args:
        dtype: the type in which features are stored: ``float32``, ``float64``, ``float16``, ``bfloat16`` or ``int8``; see
            `trak_lightning.stores.encoding`; page storage of the documentation says what each costs in
            quality.
        compression: ``none``, or ``lz4`` or ``zstd`` after a bit shuffle (requires hdf5plugin); gradients hardly compress.
        verify: whether to compare blocks with their checksums when they are read whole.
    """

    def __init__(self, dtype: Dtype = "float32", compression: Compression = "none", verify: bool = True) -> None:
        require_option("dtype", dtype, DTYPES)
        require_option("compression", compression, COMPRESSIONS)
        self.dtype = dtype
        self.compression: Compression = compression
        self.verify = verify

    def bind(self, root: Path) -> None:
        self._root = root

    def create(self, spec: FeatureSpec) -> FeatureSet:
        folder = self._folder(spec.split, spec.checkpoint)
        if not (folder / FILE).exists():
            Manifest.of(spec, self.dtype).create(folder)
        sweep(folder)
        found = self._set(folder)
        found.manifest.require(spec, self.dtype, folder)
        return found

    def grow(self, before: FeatureSpec, after: FeatureSpec) -> FeatureSet:
        found = self.open(after.split, after.checkpoint)
        assert isinstance(found, HDF5Set)
        if found.spec.num_samples != after.num_samples:
            found.manifest.require(before, self.dtype, found.folder)
            found.manifest.grown(after).replace_in(found.folder)
        return self.create(after)

    def open(self, split: str, checkpoint: str) -> FeatureSet:
        folder = self._folder(split, checkpoint)
        if not (folder / FILE).exists():
            raise no_such_set(split, checkpoint, self._root, self.list())
        return self._set(folder)

    def list(self) -> list[tuple[str, str]]:
        return sorted((path.parent.parent.name, path.parent.name) for path in self._root.glob(f"*/*/{FILE}"))

    def forget(self, split: str, checkpoint: str) -> None:
        folder = self._folder(split, checkpoint)
        if (folder / FILE).exists() and self._set(folder).idle():
            (folder / FILE).unlink(missing_ok=True)

    def _folder(self, split: str, checkpoint: str) -> Path:
        require_name(split)
        require_name(checkpoint)
        return self._root / split / checkpoint

    def _set(self, folder: Path) -> "HDF5Set":
        return HDF5Set(folder, self.compression, self.verify)


class HDF5Set(SharedSet):
    """A folder of block files."""

    def __init__(self, folder: Path, compression: Compression = "none", verify: bool = True) -> None:
        super().__init__(Manifest.read(folder), folder / "claims.lock")
        self.folder = folder
        self._compression: Compression = compression
        self._verify = verify

    # --- Writing -----------------------------------------------------------------------------------------------------

    def write_block(self, block: int, rows: FeatureRows) -> None:
        require_rows(self.spec, block, rows)
        arrays = to_arrays(rows, self.manifest.dtype, f"block {block}")
        write_block_file(self._path(block), self._key(block), arrays, self._compression)

    def discard(self, block: int) -> None:
        self._path(block).unlink(missing_ok=True)

    def stored_blocks(self) -> set[int]:
        there = {path.name for path in self.folder.glob("block-*.h5")}
        return {block for block in range(self.spec.num_blocks) if self._path(block).name in there}

    def stored_rows(self, block: int) -> int:
        if not self._path(block).exists():
            return 0
        for rows in self.once_last.get(block, ()):
            try:
                with self._open(block, rows):
                    return rows
            except CorruptFileError:
                continue
        return len(self.spec.block_range(block))

    def first_rows(self, block: int, rows: int) -> FeatureRows:
        return self._read(block, rows)

    # --- Reading -----------------------------------------------------------------------------------------------------

    def read_block(self, block: int) -> FeatureRows:
        return self._read(block)

    def verify_block(self, block: int) -> None:
        with self._open(block) as file:
            file.read_all(verify=True)

    def take(self, index: npt.ArrayLike) -> Array:
        positions = self._positions(index)
        dtype = self.manifest.dtype
        stored = np.empty((len(positions), self.spec.dim), STORED[dtype])
        scale = np.empty(len(positions), "<f4") if dtype in SCALED else None
        blocks, order, starts = self._by_block(positions)
        for block, begin, end in zip(blocks.tolist(), starts[:-1], starts[1:], strict=True):
            members = order[begin:end]
            rows = positions[members] - block * self.spec.block_size
            with self._open(block) as file:
                stored[members] = file.take("features", rows, verify=self._verify)
                if scale is not None:
                    scale[members] = file.take("scale", rows, verify=self._verify)
        return decode(stored, scale, dtype)

    def column(self, name: str, blocks: Sequence[int] | None = None) -> Array:
        def read(block: int) -> Array:
            with self._open(block) as file:
                return file.read(name, verify=self._verify)

        return np.concatenate(list(prefetched(read, range(self.spec.num_blocks) if blocks is None else blocks, 2)))

    def digest(self) -> str:
        def read(block: int) -> dict[str, str]:
            with self._open(block) as file:
                return file.checksums

        return fingerprint(list(prefetched(read, range(self.spec.num_blocks), 2)))

    def nbytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def strays(self) -> list[str]:
        expected = {self._path(block).name for block in range(self.spec.num_blocks)}
        found = []
        for path in sorted(self.folder.iterdir()):
            if path.name.endswith(".part"):
                found.append(f"{path}: left by a process that died, or still being written")
            elif path.name.startswith("block-") and path.name not in expected:
                found.append(f"{path}: the set has only blocks 0 … {self.spec.num_blocks - 1}")
        return found

    # -----------------------------------------------------------------------------------------------------------------

    def _read(self, block: int, rows: int | None = None) -> FeatureRows:
        with self._open(block, rows) as file:
            arrays = file.read_all(verify=self._verify)
        return from_arrays(arrays, self.spec.block_range(block).start, self.manifest.dtype)

    def _open(self, block: int, rows: int | None = None) -> AbstractContextManager[BlockFile]:
        return open_block_file(self._path(block), self._key(block, rows))

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
