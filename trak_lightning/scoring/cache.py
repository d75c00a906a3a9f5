"""Arrays that are computed once for a feature set and kept in the run directory."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from trak_lightning.atomic import atomic_write
from trak_lightning.rundir import UNREADABLE
from trak_lightning.scoring.base import Array
from trak_lightning.seeds import fingerprint
from trak_lightning.stores.base import FeatureSet
from trak_lightning.stores.validation import identity

VERSION = 2
"""Of what is kept: raised whenever the same key would mean other numbers."""


def cached(folder: Path | None, name: str, features: FeatureSet, key: Any, compute: Callable[[], Array]) -> Array:
    """What `compute` returns, from the file of an earlier call if there is one; mapped, not read, if it is large.

    The file's name holds a hash of all that determines the array: what the features were made from, and `key` (JSON).
    Files of that name for other features are out of date and deleted.
    """
    if folder is None:
        return compute()
    path = folder / f"{name}-{fingerprint([VERSION, identity(features.spec), key])}.npy"
    found = _read(path)
    if found is not None:
        return found
    array = compute()
    stale = [other for other in folder.glob(f"{name}-*.npy") if other != path]
    with atomic_write(path) as part, part.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.write(
            xxhash.xxh3_64_digest(np.ascontiguousarray(array).data)
        )  # behind the array, where readers do not look
    for other in stale:
        other.unlink(missing_ok=True)
    return array


def _read(path: Path) -> Array | None:
    if not path.exists():
        return None
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            if file.read() != xxhash.xxh3_64_digest(np.ascontiguousarray(array).data):
                return None
    except UNREADABLE:
        return None  # damaged: it is computed anew
    return array
