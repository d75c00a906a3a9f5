"""Arrays that are computed once for a feature set and kept in the run directory."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from trak_lightning.errors import CorruptFileError, StorageError
from trak_lightning.run.atomic import READ_ONLY, atomic_write
from trak_lightning.run.numpy_files import read_npy
from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.seeds import fingerprint

VERSION = 4
"""Version of the kept arrays: raised whenever the same key would give other numbers."""


def cached(features: CheckpointFeatures, name: str, key: Any, calculate: Callable[[], Array]) -> Array:
    """Return what `calculate` returns, from the file of an earlier call if there is one.

    The file is memory-mapped, because the arrays of many checkpoints may be larger than memory. Its name holds a hash of
    everything that determines the array: what the features were made from, and `key` (JSON values). Files of the same name
    with another hash are out of date and are deleted. Processes that share the work all calculate unless all of them find
    the file; the first one writes, unless the run directory is read-only.
    """
    folder, backend = features.cache, features.backend
    if folder is None:
        return calculate()
    path = folder / f"{name}-{fingerprint([VERSION, features.gram_identity, key])}.npy"
    found = _read(path)
    if backend.all_reduce(np.array(float(found is not None))) == backend.world_size and found is not None:
        return found
    array = calculate()
    if backend.rank == 0:
        _write(path, array)
    backend.barrier()
    kept = _read(path)
    return array if kept is None else kept  # None if this process sees another file system than the first one


def _write(path: Path, array: Array) -> None:
    name = path.name.rsplit("-", 1)[0]
    stale = [other for other in path.parent.glob(f"{name}-*.npy") if other != path]
    try:
        with atomic_write(path) as part, part.open("wb") as file:
            np.save(file, array, allow_pickle=False)
            # After the array, where numpy does not read.
            file.write(xxhash.xxh3_64_digest(np.ascontiguousarray(array).data))
    except StorageError as error:
        if getattr(error.__cause__, "errno", None) not in READ_ONLY:
            raise
    for other in stale:
        other.unlink(missing_ok=True)


def _read(path: Path) -> Array | None:
    if not path.exists():
        return None
    try:
        array = read_npy(path, mapped=True)
        with path.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            if file.read() != xxhash.xxh3_64_digest(np.ascontiguousarray(array).data):
                return None
    except (CorruptFileError, OSError):
        return None  # damaged: computed again
    return array
