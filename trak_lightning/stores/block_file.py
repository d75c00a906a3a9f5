"""One block of a feature set as an HDF5 file: written whole, and checked against what it should be before it is read."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from trak_lightning.errors import CorruptFileError, IncompleteRunError, PluginError, TrakError, needed_for
from trak_lightning.run.arrays import Array
from trak_lightning.run.atomic import atomic_hdf5
from trak_lightning.stores.encoding import LARGEST_COMPRESSED, Compression
from trak_lightning.stores.schema import SCHEMA_VERSION, checksum, layout

BITSHUFFLE = 32008
"""The registered number of the HDF5 filter."""


@dataclass(frozen=True)
class BlockKey:
    """Which block of which set a file must hold, and the shape and type of its arrays."""

    set_id: str
    block: int
    start: int
    rows: int
    dim: int
    dtype: str

    def described(self, version: int = SCHEMA_VERSION) -> dict[str, Any]:
        """The attribute ``block`` without its checksums."""
        return {
            "schema_version": version,
            "set": self.set_id,
            "block": self.block,
            "start": self.start,
            "rows": self.rows,
            "dtype": self.dtype,
        }


def write_block_file(path: Path, key: BlockKey, arrays: dict[str, Array], compression: Compression) -> None:
    """Write the arrays of a block.

    Raises:
        StorageError: the file could not be written; an older one is unharmed.
    """
    filters = _filters(compression) | ({} if compression == "none" else {"chunks": arrays["features"].shape})
    checksums = {name: checksum(values) for name, values in arrays.items()}
    with atomic_hdf5(path) as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, **(filters if name == "features" else {}))
        # Bytes of fixed length: a string of variable length would add a heap of 4 KB.
        file.attrs["block"] = np.bytes_(json.dumps({**key.described(), "xxh3_64": checksums}).encode())


class BlockFile:
    """A block file open for reading, whose every claim has been checked against `key`."""

    def __init__(self, file: h5py.h5f.FileID, key: BlockKey) -> None:
        described = _described(file)
        self.checksums: dict[str, str] = described.pop("xxh3_64")
        """XXH3-64 of every array, as written."""
        version = 1 if described.get("schema_version") == 1 else SCHEMA_VERSION
        expected = key.described(version)
        if described != expected:
            wrong = next(name for name in {**expected, **described} if described.get(name) != expected.get(name))
            raise ValueError(f"its {wrong} is {described.get(wrong)!r}, and {expected.get(wrong)!r} was expected")
        self._rows = key.rows
        self._descriptor = file.get_vfd_handle()
        size = os.fstat(self._descriptor).st_size
        types = layout(key.rows, key.dim, key.dtype, version)
        self._datasets = {name: _open_dataset(file, name, *kind, size) for name, kind in types.items()}

    def read_all(self, *, verify: bool) -> dict[str, Array]:
        """All arrays as they are stored."""
        return {name: self.read(name, verify=verify) for name in self._datasets}

    def read(self, name: str, *, verify: bool) -> Array:
        """A whole array as it is stored; `verify` compares it with its checksum."""
        if name == "content" and name not in self._datasets:
            return np.zeros(self._rows, "<u8")  # schema version 1
        dataset = self._datasets[name]
        values = np.empty(dataset.shape, dataset.dtype)
        if (offset := dataset.get_offset()) is None:
            dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
        else:  # one plain read: HDF5 holds its global lock meanwhile, so that no second thread could read ahead
            _read_into(self._descriptor, values, offset)
        if verify and (found := checksum(values)) != self.checksums[name]:
            raise ValueError(f"the checksum of its {name} is {found}, and {self.checksums[name]} was written")
        return values

    def take(self, name: str, rows: Array, *, verify: bool) -> Array:
        """Some rows of an array, in the order given; only these are read, without a checksum, if they are few."""
        dataset = self._datasets[name]
        offset = dataset.get_offset()
        if offset is None or 4 * len(rows) > self._rows:
            return self.read(name, verify=verify)[rows]
        taken = np.empty((len(rows), *dataset.shape[1:]), dataset.dtype)
        for place, row in enumerate(rows.tolist()):
            _read_into(self._descriptor, taken[place : place + 1], offset + row * taken[:1].nbytes)
        return taken


@contextmanager
def open_block_file(path: Path, key: BlockKey) -> Iterator[BlockFile]:
    """Open a block file. Whatever a damaged file leads to while it is open becomes an error of ours.

    Raises:
        IncompleteRunError: there is no such file.
        CorruptFileError: the file is not the block that `key` describes.
    """
    try:
        with h5py.File(path, "r") as file:
            yield BlockFile(file.id, key)
    except FileNotFoundError:
        raise IncompleteRunError(f"{path} is missing: not featurized yet, or deleted. Run featurize again.") from None
    except TrakError:
        raise
    # A damaged file makes h5py raise nearly anything, RuntimeError, KeyError, TypeError and MemoryError included.
    except Exception as error:
        raise CorruptFileError(
            f"{path} is not the block that its name and manifest say: {error}. Delete the file and run featurize again."
        ) from error


def _open_dataset(
    file: h5py.h5f.FileID, name: str, shape: tuple[int, ...], dtype: str, file_size: int
) -> h5py.h5d.DatasetID:
    """Open an array, after checking that it is stored in this file and that reading it allocates no more memory than the file
    has data for."""
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
        _filters("lz4")  # HDF5 unpacks only after hdf5plugin was imported
    elif (
        creation.get_layout() != h5py.h5d.CONTIGUOUS
        or creation.get_external_count()
        or (offset := dataset.get_offset()) is None
        or offset + nbytes > file_size
    ):
        raise ValueError(f"its {name} is not in the file")
    return dataset


def _described(file: h5py.h5f.FileID) -> dict[str, Any]:
    """The attribute ``block``."""
    attribute = h5py.h5a.open(file, b"block")
    if attribute.shape != () or attribute.dtype.kind != "S" or attribute.get_storage_size() > 2**16:
        raise ValueError("its attribute 'block' is not text")
    text = np.empty((), attribute.dtype)
    attribute.read(text)
    described = json.loads(bytes(text.item()))
    if not isinstance(described, dict) or not isinstance(described.get("xxh3_64"), dict):
        raise ValueError(f"its attribute 'block' is {bytes(text.item())[:80]!r}")
    return described


def _read_into(descriptor: int, values: Array, offset: int) -> None:
    """Fill a contiguous array from an open file."""
    view = memoryview(values.data).cast("B")
    while view:
        count = os.preadv(descriptor, [view], offset)
        if not count:
            raise EOFError(f"the file ends {len(view)} bytes early")
        view, offset = view[count:], offset + count


def _filters(compression: Compression) -> dict[str, Any]:
    if compression == "none":
        return {}
    with needed_for("a store with compression", "'trak-lightning[compression]'", PluginError):
        import hdf5plugin
    return {"compression": hdf5plugin.Bitshuffle(cname=compression)}
