"""Write ``.npy`` and ``.npz`` files, and read those that may be damaged or hostile. Needs no torch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import CorruptFileError, DataError
from trak_lightning.run.arrays import Array
from trak_lightning.run.atomic import atomic_write

Write: TypeAlias = Callable[[Path], AbstractContextManager[Path]]
"""`atomic_write`, after which the file is this one, or `atomic_create`, which leaves one that exists."""


def write_npy(path: Path, array: npt.ArrayLike) -> None:
    """Write an array as a ``.npy`` file.

    Raises:
        StorageError: the operating system refused.
    """
    with atomic_write(path) as part, part.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def write_npz(path: Path, arrays: Mapping[str, npt.ArrayLike], write: Write = atomic_write) -> None:
    """Write arrays by their names as a ``.npz`` file; raises as `write_npy`."""
    with write(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_npy(path: Path, *, mapped: bool = False, remedy: str = "") -> Array:
    """Read the array of a ``.npy`` file; with `mapped`, map it into memory, read-only. Nothing is unpickled.

    Raises:
        CorruptFileError: the file is missing, damaged, or holds something else; ends with `remedy`.
    """
    with _refusing(path, remedy), path.open("rb") as file:  # np.load would also accept a zip file
        if mapped:
            return np.lib.format.open_memmap(path, mode="r")
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def read_given(source: str, setting: str) -> Array:
    """Read the array of a ``.npy`` file that a user named. `setting` says with which setting, and what the file may hold.

    Raises:
        DataError: there is no such file, or it holds something else.
    """
    path = Path(source)
    try:
        return read_npy(path)
    except CorruptFileError:
        damaged = "its content is not that of a .npy file, as numpy.save writes it"
        raise DataError(
            f"{setting}; {source or 'it is empty'}: {damaged if path.is_file() else 'no such file'}"
        ) from None


def read_npz(path: Path, *required: str, remedy: str = "") -> dict[str, Array]:
    """Read all arrays of a ``.npz`` file, which must include those named in `required`. Nothing is unpickled.

    Raises:
        CorruptFileError: the file is missing, damaged, or lacks a required array; ends with `remedy`.
    """
    with _refusing(path, remedy), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {name: np.asarray(archive[name]) for name in archive.files}
        if missing := [name for name in required if name not in arrays]:
            raise KeyError(f"no array {missing[0]!r} among {', '.join(arrays) or 'none'}")
    return arrays


@contextmanager
def _refusing(path: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    # NumPy, zipfile, zlib and the tokenizer of headers raise nearly anything on a damaged file, MemoryError included.
    except Exception as error:
        found = f"{path} cannot be read as NumPy arrays ({type(error).__name__}: {error})"
        raise CorruptFileError(f"{found}. {remedy}" if remedy else found) from None
