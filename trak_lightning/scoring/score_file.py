"""A score file that several processes write at once."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import xxhash

from trak_lightning.atomic import atomic_write, new_hdf5
from trak_lightning.scoring.base import Array
from trak_lightning.scoring.compute import Compute
from trak_lightning.stores.arrays import checksum

CHECKSUMS = "xxh3_64"
"""Attribute: the XXH3-64 of every dataset and of the attribute ``settings``, as JSON."""
PIECE = 2**24
"""Bytes of a matrix that are read at once for its checksum."""


class SharedFile:
    """The file under its temporary name."""

    def __init__(self, part: Path, offset: int | None, num_train: int, compute: Compute) -> None:
        """`offset` is where the score matrix begins in the file; None if there is none."""
        self._part = part
        self._offset = offset
        self._num_train = num_train
        self._compute = compute
        self._file: BinaryIO | None = None if offset is None else part.open("rb+", buffering=0)

    def write(self, row: int, column: int, scores: Array) -> None:
        """Put scores (b, c) where they belong in the matrix, if there is one."""
        if self._file is None or self._offset is None:
            return
        values = np.ascontiguousarray(scores, "<f4")
        for place, line in enumerate(values, row):
            view, offset = memoryview(line).cast("B"), self._offset + 4 * (place * self._num_train + column)
            while view:
                written = os.pwrite(self._file.fileno(), view, offset)
                view, offset = view[written:], offset + written

    def finish(self, arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> None:
        """Add small arrays, attributes, and the checksums of all, when all processes have written theirs."""
        if self._file is not None:
            self._file.close()
        self._compute.barrier()
        if self._compute.rank == 0:
            with self._part.open("rb+") as raw, h5py.File(raw, "r+") as file:
                for name, values in arrays.items():
                    file.create_dataset(name, data=values)
                file.attrs.update(attributes)
                file.attrs[CHECKSUMS] = json.dumps(checksums(file, self._part))


def checksums(file: h5py.File, path: Path) -> dict[str, str]:
    """Those that belong to what an open file holds; `path` is the same file."""
    found = {name: _checksum(file[name], path) for name in file}
    return {**found, "settings": xxhash.xxh3_64_hexdigest(file.attrs["settings"].encode())}


def _checksum(dataset: h5py.Dataset, path: Path) -> str:
    # The matrix may be larger than memory; it was not written through HDF5, which has kept none of it to itself.
    offset, left, hasher = dataset.id.get_offset(), dataset.nbytes, xxhash.xxh3_64()
    if dataset.name != "/scores" or offset is None:
        return checksum(np.ascontiguousarray(dataset[()]))
    with path.open("rb", buffering=0) as raw:
        raw.seek(offset)
        while left:
            piece = raw.read(min(left, PIECE))
            if not piece:
                raise EOFError(f"the file ends {left} bytes early")
            hasher.update(piece)
            left -= len(piece)
    return hasher.hexdigest()


@contextmanager
def shared_file(path: Path, shape: tuple[int, int], *, whole: bool, compute: Compute) -> Iterator[SharedFile]:
    """A new file, which becomes `path` when the block ends without an error; with room for scores of `shape` if `whole`.

    Raises:
        StorageError: the file could not be written; an older one is unharmed.
    """
    if compute.rank == 0:
        with atomic_write(path) as part:
            offset = _create(part, shape if whole else None)
            compute.agreed((part, offset))
            yield SharedFile(part, offset, shape[1], compute)
    else:
        yield SharedFile(*compute.agreed((path, None)), shape[1], compute)
    compute.barrier()


def _create(part: Path, shape: tuple[int, int] | None) -> int | None:
    """An HDF5 file with an unwritten data set ``scores``; where that begins."""
    with new_hdf5(part) as file:
        if shape is None:
            return None
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        creation.set_obj_track_times(False)  # the same scores are the same file
        dataset = h5py.h5d.create(file.id, b"scores", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(shape), creation)
        offset: int = dataset.get_offset()
        return offset
