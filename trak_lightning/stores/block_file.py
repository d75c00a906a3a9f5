"""One block of a feature set as an HDF5 file: written whole, read with every claim that it makes checked first."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import h5py
import numpy as np
import numpy.typing as npt

from trak_lightning.atomic import atomic_hdf5
from trak_lightning.errors import CorruptFileError, IncompleteRunError, PluginError
from trak_lightning.stores.arrays import checksum, layout

Array = npt.NDArray[Any]
Compression: TypeAlias = Literal["none", "lz4", "zstd"]
COMPRESSIONS = get_args(Compression)
BITSHUFFLE = 32008
"""The registered number of the filter."""
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
        return layout(self.rows, self.dim, self.dtype)

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
        # Of fixed length: a text of variable length would cost a heap of 4 KB.
        file.attrs["block"] = np.bytes_(json.dumps({**key.describe(SCHEMA_VERSION), "xxh3_64": checksums}))


class BlockFile:
    """A block file open for reading, found to be what `key` says."""

    def __init__(self, file: h5py.File, key: BlockKey) -> None:
        self._file = file.id
        self._descriptor = self._file.get_vfd_handle()
        size = os.fstat(self._descriptor).st_size
        # The low-level interface of h5py, since this is done for every block and the other one takes three times as long.
        self._datasets = {
            name: _open_dataset(self._file, name, *expected, size) for name, expected in key.datasets().items()
        }
        described = _read_description(self._file)
        self._checksums = described.pop("xxh3_64")
        expected = key.describe(SCHEMA_VERSION)
        if described != expected:
            wrong = next(name for name in {**expected, **described} if described.get(name) != expected.get(name))
            raise ValueError(f"its {wrong} is {described.get(wrong)!r}, and {expected.get(wrong)!r} was expected")
        self._types = key.datasets()

    def offset(self, name: str) -> int | None:
        """Where the array begins in the file; None if it is compressed."""
        offset: int | None = self._datasets[name].get_offset()
        return offset

    def read(self, name: str, *, verify: bool) -> Array:
        """A whole array as it is stored."""
        values = np.empty(*self._types[name])
        offset = self.offset(name)
        if offset is None:
            self._datasets[name].read(h5py.h5s.ALL, h5py.h5s.ALL, values)
        else:  # a third of the time that HDF5 takes
            read_into(self._descriptor, values, offset)
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
            yield BlockFile(file, key)
    except (IncompleteRunError, PluginError):
        raise
    # A damaged file makes h5py raise nearly anything, among it RuntimeError, KeyError, TypeError and MemoryError.
    except Exception as error:
        raise CorruptFileError(
            f"{path} is not the block that its name and manifest say: {error}. Delete the file and run featurize again."
        ) from error


def _open_dataset(
    file: h5py.h5f.FileID, name: str, shape: tuple[int, ...], dtype: str, file_size: int
) -> h5py.h5d.DatasetID:
    if file.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise ValueError(f"its {name} is a link to something else")
    dataset = h5py.h5d.open(file, name.encode())
    if dataset.shape != shape or dataset.dtype.str != np.dtype(dtype).str:
        raise ValueError(f"its {name} is {dataset.dtype} {dataset.shape}, and {np.dtype(dtype)} {shape} was expected")
    creation = dataset.get_create_plist()
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    if creation.get_layout() == h5py.h5d.CHUNKED:
        filters = [creation.get_filter(i)[0] for i in range(creation.get_nfilters())]
        if nbytes > LARGEST_COMPRESSED or creation.get_chunk() != shape or filters != [BITSHUFFLE]:
            raise ValueError(f"its {name} would unpack to {nbytes} bytes in chunks of {creation.get_chunk()}")
        _filters("lz4")  # hdf5plugin must be imported for HDF5 to unpack it
    elif (
        creation.get_layout() != h5py.h5d.CONTIGUOUS
        or creation.get_external_count()
        or (offset := dataset.get_offset()) is None
        or offset + nbytes > file_size
    ):
        raise ValueError(f"its {name} is not in the file")
    return dataset


def _read_description(file: h5py.h5f.FileID) -> dict[str, Any]:
    attribute = h5py.h5a.open(file, b"block")
    if attribute.shape != () or attribute.dtype.kind != "S" or attribute.get_storage_size() > 2**16:
        raise ValueError("its attribute 'block' is not text")
    text = np.empty((), attribute.dtype)
    attribute.read(text)
    described = json.loads(text.item())
    if not isinstance(described, dict) or not isinstance(described.get("xxh3_64"), dict):
        raise ValueError(f"its attribute 'block' is {text.item()[:80]!r}")
    return described


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
