"""Read ``.npy`` and ``.npz`` files that may be damaged or hostile. Needs no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import CorruptFileError

Array = npt.NDArray[Any]


def read_npy(path: Path, *, mapped: bool = False, remedy: str = "") -> Array:
    """Read the array of a ``.npy`` file; with `mapped`, map it into memory, read-only. Nothing is unpickled.

    Raises:
        CorruptFileError: the file is missing, damaged, or holds something else; ends with `remedy`.
    """
    with _refusing(path, remedy), path.open("rb") as file:  # np.load would also accept a zip file
        if mapped:
            return np.lib.format.open_memmap(path, mode="r")
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


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
