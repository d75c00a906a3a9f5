"""Merge the features of run directories into one HDF5 file for sharing, or into another store. No torch."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np

from trak_lightning.errors import DataError, IncompatibleRunError, IncompleteRunError
from trak_lightning.run.atomic import atomic_hdf5
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.formatting import format_ranges
from trak_lightning.run.same_settings import require_same
from trak_lightning.stores.base import FeatureRows, FeatureSet
from trak_lightning.stores.configured import open_store
from trak_lightning.stores.encoding import STORED
from trak_lightning.stores.manifest import Manifest
from trak_lightning.stores.schema import NUMBERS, SCHEMA_VERSION, checksum, to_arrays
from trak_lightning.stores.validation import identity
from trak_lightning.stores.write_run import write_run

Parts: TypeAlias = dict[tuple[str, str], list[FeatureSet]]
"""(Split, checkpoint) → the sets that together hold all of its blocks."""


def merge(paths: Sequence[Path], output: Path, *, store: Any = None, to: Any = None) -> list[FeatureSet]:
    """Write every feature set of the run directories to one place; returns the sets, one per split and checkpoint.

    A set may be spread over several directories. If several of them hold the same block, their rows must agree.

    Args:
        paths: the run directories.
        output: a new HDF5 file, or a new run directory if `to` is given.
        store: the store of all run directories; if None, the one that each configuration names.
        to: a store for `output`, by name or as ``{"name": …, **options}``; its ``dtype`` defaults to that of the features.

    Raises:
        IncompleteRunError: a block is in none of them; names the rows.
        IncompatibleRunError: the directories were made with different settings, or hold different rows of the same samples.
    """
    if output.exists():
        raise DataError(f"{output} exists; choose another --output, or delete it")
    runs = [RunDirectory(path) for path in paths]
    found: Parts = {}
    for run in runs:
        opened = open_store(run, store)
        for key in opened.list():
            found.setdefault(key, []).append(opened.open(*key))
    if not found:
        raise IncompleteRunError(f"there are no features in {', '.join(map(str, paths))}")
    for key, parts in sorted(found.items()):
        _require_whole("/".join(key), parts)
    if to is None:
        _write_file(output, runs, found)
    else:
        dtypes = {part.dtype for parts in found.values() for part in parts}
        sets = ((parts[0].spec, blocks(parts)) for _, parts in sorted(found.items()))
        write_run(RunDirectory(output), to, runs, sets, max(dtypes, key=list(STORED).index))
    return [parts[0] for _, parts in sorted(found.items())]


def blocks(parts: Sequence[FeatureSet]) -> Iterator[FeatureRows]:
    """Read all blocks of a set in order, each from one of the parts that hold it."""
    missing = [set(part.missing_blocks()) for part in parts]
    for block in range(parts[0].spec.num_blocks):
        yield next(part for part, lacks in zip(parts, missing, strict=True) if block not in lacks).read_block(block)


def _write_file(output: Path, runs: Sequence[RunDirectory], found: Parts) -> None:
    records = {record.id: record.source for run in runs for record in run.read().checkpoints}
    with atomic_hdf5(output) as file:
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["checkpoints"] = json.dumps([{"id": id_, "source": source} for id_, source in records.items()])
        for id_ in records:
            subset = next((s for run in runs if (s := run.read_subset(id_)) is not None), None)
            if subset is not None:
                file[f"subsets/{id_}"] = subset
        for key, parts in sorted(found.items()):
            _write_set(file.create_group("features/" + "/".join(key)), parts)


def _require_whole(name: str, parts: Sequence[FeatureSet]) -> None:
    spec = parts[0].spec
    holders = [set(range(spec.num_blocks)) - set(part.missing_blocks()) for part in parts]
    for part in parts[1:]:
        require_same(
            identity(spec) | {"block_size": spec.block_size, "batch_size": spec.batch_size},
            identity(part.spec) | {"block_size": part.spec.block_size, "batch_size": part.spec.batch_size},
            name,
        )
    missing = sorted(set(range(spec.num_blocks)).difference(*holders))
    if missing:
        rows = format_ranges(map(spec.block_range, missing))
        raise IncompleteRunError(
            f"{len(missing)} of {spec.num_blocks} blocks of {name} are in none of the run directories (samples {rows}). "
            "Run featurize to its end first."
        )
    for block in range(spec.num_blocks):
        copies = [part for part, holder in zip(parts, holders, strict=True) if block in holder]
        if len(copies) > 1:
            first = copies[0].read_block(block)
            for other in copies[1:]:
                if not _same(first, other.read_block(block)):
                    raise IncompatibleRunError(
                        f"block {block} of {name} is in several run directories, with different rows. Find out which "
                        "one is right, and delete the block in the others."
                    )


def _write_set(group: h5py.Group, parts: Sequence[FeatureSet]) -> None:
    spec, dtype = parts[0].spec, parts[0].dtype
    group.attrs["manifest"] = Manifest.of(spec, dtype).dump()
    shapes = {"features": (spec.num_samples, spec.dim), "scale": (spec.num_samples,)}
    checksums: dict[str, list[str]] = {}
    for block, rows in enumerate(blocks(parts)):
        arrays = to_arrays(rows, dtype, f"block {block}")
        samples = spec.block_range(block)
        for name, values in arrays.items():
            if name not in group:
                group.create_dataset(name, shapes.get(name, (spec.num_samples,)), values.dtype)
            group[name][samples.start : samples.stop] = values
            checksums.setdefault(name, []).append(checksum(values))
    for name, of_blocks in checksums.items():
        group[f"xxh3_64/{name}"] = np.array(of_blocks, "S16")  # a dataset, since an attribute holds 64 KB at most


def _same(one: FeatureRows, other: FeatureRows) -> bool:
    known = (one.content != 0) & (other.content != 0)
    return np.array_equal(one.content[known], other.content[known]) and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("features", *NUMBERS)
    )
