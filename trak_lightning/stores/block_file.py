"""One block of a feature set as an HDF5 file: written whole, read with every claim that it makes checked first."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from trak_lightning.atomic import atomic_hdf5
from trak_lightning.errors import CorruptFileError, IncompleteRunError, PluginError
from trak_lightning.stores.encoding import STORED, column_dtype

Array = npt.NDArray[Any]
Compression: TypeAlias = Literal["none", "lz4", "zstd"]
COMPRESSIONS = get_args(Compression)
LARGEST_COMPRESSED = 2**32
"""Bytes: a small compressed file that claims to hold more is not unpacked."""


@dataclass(frozen=True)
class BlockKey:
    """Which block of which set: what its file must say of itself, and the shape and type of what it holds."""

    set_id: str
    block: int
    start: int
    rows: int
    dim: int
    dtype: str

    def datasets(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name → shape and type of everything in the file."""
        columns = {name: ((self.rows,), column_dtype(self.dtype)) for name in ("output", "loss_weight", "curvature")}
        scale = {"scale": ((self.rows,), "<f4")} if self.dtype in ("float16", "int8") else {}
        return {"features": ((self.rows, self.dim), STORED[self.dtype]), **scale, **columns}

    def describe(self, schema_version: int) -> dict[str, Any]:
        """The attribute ``block`` without its checksums."""
        return {
            "schema_version": schema_version,
            "set": self.set_id,
            "block": self.block,
            "start": self.start,
            "rows": self.rows,
            "dtype": self.dtype,
        }


SCHEMA_VERSION = 1


def write_block_file(path: Path, key: BlockKey, arrays: dict[str, Array], compression: Compression) -> None:
    """Write `arrays`, which are those of ``key.datasets()``.

    Raises:
        StorageError: the file could not be written; an older one is unharmed.
    """
    options = _filters(compression) | ({} if compression == "none" else {"chunks": arrays["features"].shape})
    with atomic_hdf5(path) as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, **(options if name == "features" else {}))
        checksums = {name: checksum(values) for name, values in arrays.items()}
        file.attrs["block"] = json.dumps({**key.describe(SCHEMA_VERSION), "xxh3_64": checksums})


def checksum(values: Array) -> str:
    """XXH3-64 of the bytes of a contiguous array, 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(values.data)


class BlockFile:
    """A block file open for reading, found to be what `key` says."""

    def __init__(self, path: Path, file: h5py.File, key: BlockKey) -> None:
        self._path = path
        self._datasets = {name: _dataset(file, name, *expected) for name, expected in key.datasets().items()}
        described = json.loads(file.attrs["block"])
        self._checksums = described.pop("xxh3_64")
        expected = key.describe(SCHEMA_VERSION)
        if described != expected:
            wrong = next(name for name in {**expected, **described} if described.get(name) != expected.get(name))
            raise ValueError(f"its {wrong} is {described.get(wrong)!r}, and {expected.get(wrong)!r} was expected")

    def offset(self, name: str) -> int | None:
        """Where the array begins in the file; None if it is compressed."""
        offset: int | None = self._datasets[name].id.get_offset()
        return offset

    def read(self, name: str, *, verify: bool) -> Array:
        """A whole array as it is stored.

        Raises:
            CorruptFileError: its bytes are not those that were written.
        """
        dataset = self._datasets[name]
        values = np.empty(dataset.shape, dataset.dtype)
        offset = self.offset(name)
        if offset is None:
            dataset.read_direct(values)
        else:  # a third of the time that HDF5 takes
            read_into(dataset.file.id.get_vfd_handle(), values, offset)
        if verify and checksum(values) != self._checksums[name]:
            raise ValueError(
                f"the checksum of its {name} is {checksum(values)}, and {self._checksums[name]} was written"
            )
        return values


def read_into(descriptor: int, values: Array, offset: int) -> None:
    """Fill a contiguous array from an open file.

    Raises:
        EOFError: the file ends before.
    """
    view = memoryview(values.data).cast("B")
    while view:
        count = os.preadv(descriptor, [view], offset)
        if not count:
            raise EOFError(f"the file ends {len(view)} bytes early")
        view, offset = view[count:], offset + count


@contextmanager
def open_block_file(path: Path, key: BlockKey) -> Iterator[BlockFile]:
    """Open a block file.

    Raises:
        IncompleteRunError: there is none.
        CorruptFileError: it is not the block that `key` says; nothing of it was read into memory.
    """
    try:
        if not path.exists():
            raise IncompleteRunError(f"{path} is missing: not featurised yet, or deleted. Run featurize again.")
        with h5py.File(path, "r") as file:
            yield BlockFile(path, file, key)
    except (IncompleteRunError, PluginError):
        raise
    # A damaged file makes h5py raise nearly anything, among it RuntimeError, KeyError, TypeError and MemoryError.
    except Exception as error:
        raise CorruptFileError(
            f"{path} is not the block that its name and manifest say: {error}. Delete the file and run featurize again."
        ) from error


def _dataset(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
    if file.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise ValueError(f"its {name} is a link to something else")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.shape != shape or dataset.dtype.str != np.dtype(dtype).str:
        found = (getattr(dataset, "dtype", type(dataset).__name__), getattr(dataset, "shape", ""))
        raise ValueError(f"its {name} is {found[0]} {found[1]}, and {np.dtype(dtype)} {shape} was expected")
    creation = dataset.id.get_create_plist()
    if creation.get_layout() == h5py.h5d.VIRTUAL or creation.get_external_count():
        raise ValueError(f"its {name} lies in other files")
    if creation.get_layout() == h5py.h5d.CHUNKED:
        if dataset.nbytes > LARGEST_COMPRESSED or dataset.chunks != shape:
            raise ValueError(f"its {name} would unpack to {dataset.nbytes} bytes in chunks of {dataset.chunks}")
        _filters("lz4")
    elif dataset.id.get_offset() is None or dataset.id.get_offset() + dataset.nbytes > _size(file):
        raise ValueError(f"its {name} is not in the file")
    return dataset


def _size(file: h5py.File) -> int:
    return Path(file.filename).stat().st_size


def _filters(compression: Compression) -> dict[str, Any]:
    if compression == "none":
        return {}
    try:
        import hdf5plugin
    except ImportError as error:
        raise PluginError(
            "compressed features need the package hdf5plugin: pip install 'trak-lightning[compression]'"
        ) from error
    return {"compression": hdf5plugin.Bitshuffle(cname=compression)}
