"""The index as a file: HDF5, so that it can be read without FAISS, and whole or not there."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np
import xxhash

from trak_lightning.errors import CorruptFileError, IncompatibleRunError
from trak_lightning.run.atomic import atomic_write, new_hdf5, sweep
from trak_lightning.run.same_settings import current, first_difference
from trak_lightning.stores.authoring import checksum
from trak_lightning_faiss.directions import Array

log = logging.getLogger(__name__)

VERSION = 1
PIECE = 2**16
"""Rows that are read at a time."""
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Index:
    """Rows of few dimensions to search, and what makes exact scores of the rows that are found."""

    rows: faiss.IndexScalarQuantizer
    """n rows of r dimensions in float16."""
    targets: Array
    """(M, k, r) maps features of a target, as the scorer multiplies them, to r dimensions; the sum over checkpoints is searched for."""
    coefficients: Array
    """(M, n) what the scorer multiplies the products of each training sample by."""


@dataclass(frozen=True)
class Contents:
    """What an index is written from; `blocks` yields consecutive rows (b, r) with their coefficients (M, b), n in all."""

    num_samples: int
    targets: Array
    blocks: Iterator[tuple[Array, Array]]


def open_index(path: Path, made_from: Mapping[str, Any], build: Callable[[], Contents]) -> Index:
    """Read an index; build it first if there is none, if it is damaged, or if it was made from other rows or settings.

    Args:
        path: the file.
        made_from: all that determines the index, JSON values; `checkpoints` lists ids.
        build: makes it.

    Raises:
        IncompatibleRunError: the file belongs to another run: it has checkpoints that this one does not have.
        StorageError: it cannot be written.
    """
    made_from = json.loads(json.dumps({"version": VERSION, **made_from}))
    if path.exists():
        try:
            found = _read(path, made_from)
            if found is not None:
                return found
        except CorruptFileError as error:
            log.warning("index      %s; it is built again", error)
    sweep(path.parent)
    _write(path, made_from, build())
    found = _read(path, made_from)
    if found is None:  # another process has replaced it
        raise IncompatibleRunError(f"{path} was replaced by an index of other settings: start again")
    return found


def _write(path: Path, made_from: Mapping[str, Any], contents: Contents) -> None:
    n, (M, _, r) = contents.num_samples, contents.targets.shape
    with atomic_write(path) as part, new_hdf5(part) as file:
        file["targets"] = contents.targets
        rows = file.create_dataset("rows", (n, r), "<f2")
        coefficients = np.empty((M, n))
        hasher, start = xxhash.xxh3_64(), 0
        for block, factors in contents.blocks:
            stop = start + len(block)
            narrow = np.ascontiguousarray(block.clip(-LARGEST, LARGEST).astype("<f2"))
            rows[start:stop], coefficients[:, start:stop] = narrow, factors
            hasher.update(narrow.data)
            start = stop
        assert start == n
        file["coefficients"] = coefficients
        small = {"targets": contents.targets, "coefficients": coefficients}
        sums = {name: checksum(values) for name, values in small.items()} | {"rows": hasher.hexdigest()}
        file.attrs["made_from"], file.attrs["xxh3_64"] = json.dumps(made_from), json.dumps(sums)


def _read(path: Path, made_from: Mapping[str, Any]) -> Index | None:
    """Read an index; None if it was made from something else.

    Raises:
        IncompatibleRunError: as `open_index`.
        CorruptFileError: the file is not what was written.
    """
    try:
        with h5py.File(path, "r") as file:
            written, sums = json.loads(file.attrs["made_from"]), json.loads(file.attrs["xxh3_64"])
            if foreign := set(written["checkpoints"]) - set(made_from["checkpoints"]):
                raise IncompatibleRunError(
                    f"{path} is the index of another run: it was made from checkpoint {', '.join(sorted(foreign))}, and this run has "
                    f"{', '.join(made_from['checkpoints'])}. Delete it, and the index of this run is built."
                )
            difference = first_difference(current(written), current(made_from))
            if difference is not None:
                log.info("index      built again, since %s has changed", difference[0])
                return None
            return _load(file, made_from, sums, path.stat().st_size)
    except IncompatibleRunError:
        raise
    except Exception as error:  # a damaged file makes h5py raise almost any exception
        raise CorruptFileError(f"{path} is not what was written ({type(error).__name__}: {error})") from error


def _load(file: h5py.File, made_from: Mapping[str, Any], sums: Mapping[str, str], size: int) -> Index:
    stored, n, M = file["rows"], made_from["num_samples"], len(made_from["checkpoints"])
    r = stored.shape[1]
    expected = {"rows": (n, r), "targets": (M, made_from["dim"], r), "coefficients": (M, n)}
    for name, shape in expected.items():
        if file[name].shape != shape or file[name].nbytes > size:
            raise ValueError(f"{name} is {file[name].shape} in {size} bytes, expected {shape}")
    small = {name: file[name][()] for name in ("targets", "coefficients")}
    found = {name: checksum(values) for name, values in small.items()}
    # The codes of this quantizer are the numbers themselves in float16.
    index, hasher = (
        faiss.IndexScalarQuantizer(r, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT),
        xxhash.xxh3_64(),
    )
    for start in range(0, n, PIECE):
        piece = np.ascontiguousarray(stored[start : start + PIECE])
        hasher.update(piece.data)
        index.add_sa_codes(piece.view(np.uint8))
    difference = first_difference(dict(sums), {**found, "rows": hasher.hexdigest()})
    if difference is not None:
        raise ValueError(f"the checksum of its {difference[0]} is {difference[2]}, and {difference[1]} was written")
    return Index(index, **small)
