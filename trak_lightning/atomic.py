"""Files that are there whole or not at all. Needs no torch."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from trak_lightning.errors import StorageError

if TYPE_CHECKING:
    import h5py

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free space and run the same command again",
    errno.EDQUOT: "your disk quota is used up; free space and run the same command again",
    errno.EFBIG: "the file is larger than this file system or process may write",
    errno.EROFS: "the file system is read-only; choose another run directory",
    errno.EACCES: "permission denied; choose another run directory or change its permissions",
    errno.EPERM: "not permitted; choose another run directory or change its permissions",
    errno.ENOTDIR: "part of the path is a file, not a folder; choose another run directory",
}


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write to the yielded temporary path; it becomes `path` when the block ends without an error.

    The data is on the disk before the name is, so that a file under its final name is whole even after a loss of power.
    Folders are made as needed. Processes may write the same path at once: one of them wins.

    Raises:
        StorageError: the operating system refused; `path` is as it was before.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
        _fsync_folder(path.parent)
    except OSError as error:
        reason = _REMEDIES.get(error.errno or 0, "what is stored so far is kept")
        raise StorageError(f"cannot write {path}: {error.strerror or error}: {reason}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def atomic_hdf5(path: Path) -> Iterator["h5py.File"]:
    """As `atomic_write`, for an HDF5 file, which is open for writing inside the block."""
    import h5py  # here, because commands that find nothing to do need not wait for it

    # Through a Python file object: when HDF5 itself cannot write while closing a file, on a full disk, h5py prints that
    # and goes on as if the file were whole.
    with atomic_write(path) as part, part.open("wb+") as raw, h5py.File(raw, "w") as file:
        yield file


def _fsync_folder(folder: Path) -> None:
    # Makes the rename itself durable. Some network file systems do not allow it, and need no such thing.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
