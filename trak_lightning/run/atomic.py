"""Write files that exist whole or not at all. Needs no torch."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from trak_lightning.errors import StorageError

if TYPE_CHECKING:
    import h5py

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free space and run the same command again",
    errno.EDQUOT: "your disk quota is used up; free space and run the same command again",
    errno.EFBIG: "the file is larger than this file system or process may write",
    errno.EROFS: "the file system is read-only; choose another run directory",
    errno.EACCES: "permission denied; choose another run directory or change its permissions",
    errno.EPERM: "not permitted; choose another run directory or change its permissions",
    errno.ENOTDIR: "part of the path is a file, not a folder; choose another run directory",
}

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it is renamed to `path` when the block ends without an error.

    The data reaches the disk before the name does, so that a file under its final name is whole even after a loss of power.
    Folders are created as needed. Several processes may write the same path at once; the last one wins.

    Raises:
        StorageError: the operating system refused; `path` is as it was before.
    """
    with _part_of(path) as part:
        yield part
        fsync(part)
        part.replace(path)
        fsync(path.parent)


@contextmanager
def atomic_create(path: Path) -> Iterator[Path]:
    """As `atomic_write`, but a `path` that exists when the block ends stays as it is: the first process wins."""
    with _part_of(path) as part:
        yield part
        fsync(part)
        try:
            os.link(part, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            if not path.exists():
                part.replace(path)
        fsync(path.parent)


@contextmanager
def atomic_hdf5(path: Path) -> Iterator["h5py.File"]:
    """As `atomic_write`, but yield an HDF5 file that is open for writing."""
    with atomic_write(path) as part, new_hdf5(part) as file:
        yield file


@contextmanager
def new_hdf5(path: Path) -> Iterator["h5py.File"]:
    """Open a new HDF5 file at `path` for writing.

    Data of 2048 bytes or more begins at a multiple of 64 bytes, so that it can be mapped into memory as it is. HDF5 1.8
    and later read it.
    """
    import h5py  # here, so that commands that find nothing to do do not wait for it

    # Through a Python file object: if HDF5 itself cannot write while it closes a file, as on a full disk, h5py prints the
    # error and continues as if the file were whole.
    with (
        path.open("wb+") as raw,
        h5py.File(raw, "w", libver="earliest", alignment_threshold=2048, alignment_interval=64) as file,
    ):
        yield file


def refused(path: Path | str, error: OSError) -> StorageError:
    """The error for a `path` that the operating system refused to write, with its reason and the remedy."""
    reason = _REMEDIES.get(error.errno or 0, f"{error.strerror or error}: what is stored so far is kept")
    return StorageError(f"cannot write {path}: {reason}")


def require_writable(path: Path) -> None:
    """Refuse a file or folder that cannot be written, before anything is computed for it; leave nothing behind.

    Raises:
        StorageError: the operating system refuses a file there.
    """
    folder = next(each for each in (path, *path.parents) if each.is_dir())
    try:
        with _part_of(folder / path.name):
            pass
    except StorageError as error:
        raise refused(path, error.__cause__) from error  # type: ignore[arg-type]  # an OSError


def sweep(folder: Path) -> None:
    """Delete temporary files that dead processes left in `folder`; those of living processes stay."""
    for part in folder.glob("*.part"):
        with suppress(OSError), part.open("rb+") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()


@contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    # Not the process id: processes on two machines may share it, and the folder.
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _held(part):
            yield part
    except OSError as error:
        raise refused(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def _held(part: Path) -> Iterator[None]:
    """Create the file, locked against `sweep` for as long as this process lives."""
    if fcntl is None:
        yield
        return
    while True:
        with part.open("wb") as file:
            with suppress(OSError):  # a file system without locks, where `sweep` cannot delete anything either
                fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file.fileno()).st_nlink == 0:
                continue  # swept before it was locked
            yield
            return


def fsync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk, so that they survive a loss of power."""
    if path.is_dir():  # makes a rename durable; some network file systems neither allow nor need it
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with suppress(OSError):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    else:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
