"""One feature set in Zarr arrays."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec

from trak_lightning.errors import CorruptFileError, IncompleteRunError, StorageError, TrakError
from trak_lightning.stores.authoring import (
    LARGEST_COMPRESSED,
    FeatureRows,
    Manifest,
    SharedSet,
    checksum,
    decode,
    from_arrays,
    prefetched,
    require_rows,
    to_arrays,
)
from trak_lightning_zarr.arrays import BLOCKS, open_arrays, record_columns, stored_layout
from trak_lightning_zarr.place import Place

Array = npt.NDArray[Any]


class ZarrSet(SharedSet):
    """A group of arrays. A block is stored if its record is, which is written last, in one piece."""

    def __init__(self, place: Place, name: str, manifest: Manifest, lock: Path) -> None:
        super().__init__(manifest, lock)
        self.name = name
        self._place = place

    # --- Writing -----------------------------------------------------------------------------------------------------

    def write_block(self, block: int, rows: FeatureRows) -> None:
        self._place.require_writable()
        require_rows(self.spec, block, rows)
        samples = self.spec.block_range(block)
        encoded = to_arrays(rows, self.manifest.dtype, f"block {block}")
        arrays = {name: encoded[name] for name in self._layout(len(rows))}
        with self._reading():
            records = self._arrays[BLOCKS]
        with self._place.writing(self.name):
            self._discard(block)
            for name, values in arrays.items():
                self._arrays[name][samples.start : samples.stop] = values
            self._place.flush(*(f"{self.name}/{name}/c/{block}{'/0' * (name == 'features')}" for name in arrays))
            records[block] = self._new_record(block, arrays)
            self._place.flush(f"{self.name}/{BLOCKS}/c.{block}.0")
            for left in self._place.unfinished(self.name):
                if re.search(rf"/c[./]{block}[./]", left.as_posix()):
                    left.unlink(missing_ok=True)

    def discard(self, block: int) -> None:
        self._place.require_writable()
        with self._place.writing(self.name):
            self._discard(block)

    def _discard(self, block: int) -> None:
        if self._record(block) is not None:
            with self._reading():
                self._arrays[BLOCKS][block] = 0  # which deletes the record: from now on the block is missing
            self._place.flush(f"{self.name}/{BLOCKS}/zarr.json")

    def stored_blocks(self) -> set[int]:
        with self._reading():
            keys = (key.rpartition("/")[2] for key in self._place.keys(f"{self.name}/{BLOCKS}"))
            return {int(found[1]) for key in keys if (found := re.fullmatch(r"c\.(\d+)\.0", key))}

    def stored_rows(self, block: int) -> int:
        record = self._record(block)
        return 0 if record is None else record["rows"]

    def first_rows(self, block: int, rows: int) -> FeatureRows | None:
        record = self._record(block)
        try:
            return None if record is None else self._read(block, record)
        except CorruptFileError:  # a process was killed while it wrote the longer block over this one
            return None

    # --- Reading -----------------------------------------------------------------------------------------------------

    def read_block(self, block: int) -> FeatureRows:
        return self._read(block, self._whole(block))

    def take(self, index: npt.ArrayLike) -> Array:
        positions = self._positions(index)
        for block in np.unique(positions // self.spec.block_size).tolist():
            self._whole(block)
        if not len(positions):
            return np.empty((0, self.spec.dim), np.float32)
        with self._reading():
            stored = self._arrays["features"].oindex[positions, :]
            scale = self._arrays["scale"].oindex[positions] if "scale" in self._arrays else None
            features = decode(np.asarray(stored), scale if scale is None else np.asarray(scale), self.manifest.dtype)
            if not np.isfinite(features).all():
                raise ValueError("some of its blocks were deleted")
            return features

    def column(self, name: str, blocks: Sequence[int] | None = None) -> Array:
        def read(block: int) -> Array:
            return self._values(name, block, self._whole(block))

        return np.concatenate(list(prefetched(read, range(self.spec.num_blocks) if blocks is None else blocks, 2)))

    def nbytes(self) -> int:
        with self._reading():
            return self._place.nbytes(self.name)

    def strays(self) -> list[str]:
        left = self._place.unfinished(self.name)
        return [f"{path}: left by a process that died, or still being written" for path in left]

    # -----------------------------------------------------------------------------------------------------------------

    @cached_property
    def _arrays(self) -> dict[str, zarr.Array]:
        return open_arrays(self._place.zarr, self.name, self.manifest, mode="r" if self._place.read_only else "r+")

    def _whole(self, block: int) -> dict[str, int]:
        """The record of a block.

        Raises:
            IncompleteRunError: the block is missing.
        """
        record = self._record(block)
        if record is None or record["rows"] < len(self.spec.block_range(block)):
            raise IncompleteRunError(
                f"block {block} of {self._place.url}/{self.name} is missing: not featurized yet, or deleted. Run featurize "
                "again."
            )
        return record

    def _record(self, block: int) -> dict[str, int] | None:
        with self._reading():
            record = dict(
                zip(record_columns(self.manifest), np.asarray(self._arrays[BLOCKS][block]).tolist(), strict=True)
            )
            if not any(record.values()):
                return None
            expected = {"set": int(self.manifest.set_id, 16), "block": block}
            rows = len(self.spec.block_range(block))
            if {name: record[name] for name in expected} != expected or not 0 < record["rows"] <= rows:
                raise ValueError(
                    f"the record of block {block} is {record}, and {expected} with {rows} rows was expected"
                )
            return record

    def _new_record(self, block: int, arrays: dict[str, Array]) -> npt.NDArray[np.uint64]:
        about = {"set": int(self.manifest.set_id, 16), "block": block, "rows": len(self.spec.block_range(block))}
        sums = {name: int(checksum(values), 16) for name, values in arrays.items()}
        return np.array([(about | sums).get(name, 0) for name in record_columns(self.manifest)], np.uint64)

    def _read(self, block: int, record: dict[str, int]) -> FeatureRows:
        arrays = {name: self._values(name, block, record) for name in self._layout(record["rows"])}
        return from_arrays(arrays, self.spec.block_range(block).start, self.manifest.dtype)

    def _values(self, name: str, block: int, record: dict[str, int]) -> Array:
        """Read one array of a block and compare it with its checksum."""
        if name == "content" and name not in record:
            return np.zeros(record["rows"], np.uint64)  # schema version 1
        start, rows = self.spec.block_range(block).start, record["rows"]
        with self._reading():
            shape, dtype = self._layout(rows)[name]
            key = f"{self.name}/{name}/c/{block}{'/0' * (name == 'features')}"
            require_plausible(
                self._place.size(key), math.prod(shape) * np.dtype(dtype).itemsize, self._compressed(name)
            )
            values = np.ascontiguousarray(self._arrays[name][start : start + rows])
            if (found := int(checksum(values), 16)) != record[name]:
                raise ValueError(
                    f"the checksum of {name} in block {block} is {found:016x}, and {record[name]:016x} was written"
                )
            return values

    def _layout(self, rows: int) -> dict[str, tuple[tuple[int, ...], str]]:
        return stored_layout(self.manifest, rows)

    def _compressed(self, name: str) -> bool:
        return any(isinstance(codec, BloscCodec) for codec in self._arrays[name].compressors)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn whatever a damaged array or a failing server leads to into an error of ours.

        Raises:
            CorruptFileError: what is stored is not what was written.
            StorageError: the file system or the server refused.
        """
        where = f"{self._place.url}/{self.name}"
        try:
            yield
        except TrakError:
            raise
        # A damaged array makes zarr and its codecs raise nearly anything; a deleted one, FileNotFoundError.
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError, MemoryError, FileNotFoundError) as error:
            raise CorruptFileError(
                f"{where} is not the feature set that its manifest says: {error}. Delete it and run featurize again."
            ) from error
        except Exception as error:
            raise StorageError(f"cannot read {where}: {type(error).__name__}: {error}") from error


def require_plausible(stored: int, nbytes: int, compressed: bool) -> None:
    """Refuse to allocate memory for more than an object can hold.

    Raises:
        ValueError: the object is too small.
    """
    if nbytes > LARGEST_COMPRESSED if compressed else stored < nbytes:
        raise ValueError(f"an object of {stored} bytes cannot hold a block of {nbytes} bytes")
