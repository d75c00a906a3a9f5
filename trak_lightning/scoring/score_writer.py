"""A score file that several processes write at the same time."""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import xxhash

from trak_lightning.run.atomic import atomic_write, new_hdf5
from trak_lightning.scoring.backend import Backend
from trak_lightning.scoring.base import Array, chunks

CHECKSUMS = "xxh3_64"
"""Attribute: the XXH3-64 of every dataset and of the attribute ``settings``, as JSON."""
PIECE = 2**20
"""Bytes of an array that are read at a time for its checksum: they stay in the processor's cache."""
BAND_BYTES = 2**26
"""Bytes of a matrix that are collected before they are written, one line per target."""


class SharedFile:
    """The file under its temporary name."""

    def __init__(self, part: Path, offset: int | None, num_train: int, backend: Backend) -> None:
        """`offset` is where the score matrix begins in the file; None if there is no matrix."""
        self._part = part
        self._offset = offset
        self._num_train = num_train
        self._backend = backend
        self._file: BinaryIO | None = None if offset is None else part.open("rb+", buffering=0)
        # Neighboring tiles are joined to long lines: writing lines of one page each takes three times as long.
        self._band = np.empty((0, 0), "<f4")
        self._row = self._column = self._filled = 0

    def write(self, row: int, column: int, scores: Array) -> None:
        """Write scores (b, c) to their place in the matrix, if there is one."""
        if self._file is None:
            return
        b, c = scores.shape
        follows = (row, column, b) == (self._row, self._column + self._filled, len(self._band))
        if not follows or self._filled + c > self._band.shape[1]:
            self._flush()
            self._row, self._column = row, column
            shape = (b, min(self._num_train, max(c, BAND_BYTES // (4 * b))))
            if self._band.shape != shape:
                self._band = np.empty(shape, "<f4")
        self._band[:, self._filled : self._filled + c] = scores
        self._filled += c

    def _flush(self) -> None:
        """Hand the collected lines to the operating system."""
        if self._file is None or self._offset is None or not self._filled:
            return
        for place, line in enumerate(self._band[:, : self._filled], self._row):
            view, offset = memoryview(line).cast("B"), self._offset + 4 * (place * self._num_train + self._column)
            while view:
                written = os.pwrite(self._file.fileno(), view, offset)
                view, offset = view[written:], offset + written
        self._filled = 0

    def close(self) -> None:
        """Close the file, whether or not it was finished."""
        if self._file is not None:
            self._file.close()

    def finish(self, arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> None:
        """Add small arrays, attributes and all checksums, after all processes have written their parts."""
        if self._file is not None:
            self._flush()
            os.fsync(self._file.fileno())  # of this process, which may be on another machine than process 0
            self.close()
        self._backend.barrier()
        if self._backend.rank == 0:
            with self._part.open("rb+") as raw, h5py.File(raw, "r+") as file:
                for name, values in arrays.items():
                    file.create_dataset(name, data=values)
                file.attrs.update(attributes)
                file.attrs[CHECKSUMS] = json.dumps(checksums(file))


def checksums(file: h5py.File) -> dict[str, str]:
    """Compute the checksums of an open file's contents."""
    found = {name: _checksum(file[name]) for name in file}
    return {**found, "settings": xxhash.xxh3_64_hexdigest(file.attrs["settings"].encode())}


def _checksum(dataset: h5py.Dataset) -> str:
    """XXH3-64 of the values, read in pieces: the matrix may be larger than memory."""
    hasher = xxhash.xxh3_64()
    for rows in chunks(len(dataset), dataset.nbytes // max(len(dataset), 1), PIECE):
        hasher.update(dataset[rows.start : rows.stop])
    return hasher.hexdigest()


@contextmanager
def shared_file(path: Path, shape: tuple[int, int], *, whole: bool, backend: Backend) -> Iterator[SharedFile]:
    """Open a new file that becomes `path` when the context ends without an error; with space for scores of `shape` if `whole`.

    Raises:
        StorageError: the file could not be written; an older file is unharmed.
    """
    if backend.rank == 0:
        with atomic_write(path) as part:
            offset = _create(part, shape if whole else None)
            backend.broadcast((part, offset))
            with closing(SharedFile(part, offset, shape[1], backend)) as file:
                yield file
    else:
        with closing(SharedFile(*backend.broadcast((path, None)), shape[1], backend)) as file:
            yield file
    backend.barrier()


def _create(part: Path, shape: tuple[int, int] | None) -> int | None:
    """Create an HDF5 file with an unwritten dataset ``scores``; return where that begins in the file."""
    with new_hdf5(part) as file:
        if shape is None:
            return None
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        creation.set_obj_track_times(False)  # so that the same scores give the same bytes
        dataset = h5py.h5d.create(file.id, b"scores", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(shape), creation)
        offset: int = dataset.get_offset()
    _reserve(part, offset, 4 * shape[0] * shape[1])
    return offset


def _reserve(part: Path, offset: int, size: int) -> None:
    """Reserve space, so that a disk that is too small is noticed before anything is computed."""
    if hasattr(os, "posix_fallocate"):
        with part.open("rb+") as file:
            try:
                os.posix_fallocate(file.fileno(), offset, size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # file systems that do not support it
                    raise
