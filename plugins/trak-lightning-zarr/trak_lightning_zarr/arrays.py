"""Create, grow and open the arrays of a set; every claim that they make is checked before they are read."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import ContainsArrayError

from trak_lightning.stores.authoring import Compression, FeatureSpec, Manifest, layout

BLOCKS = "blocks"
FILL = {"<u2": 0x7FC0, "|i1": -128, "<u8": 2**64 - 1}
"""What is read where nothing is stored. It is never stored itself: NaN for bfloat16, a number outside the range that int8
rows use. Zarr stores no object for a chunk that has nothing else."""
CODECS = {"bytes", "sharding_indexed", "blosc", "crc32c"}


def record_columns(manifest: Manifest) -> list[str]:
    """The columns of `BLOCKS`: the set, the block, its rows, and the XXH3-64 of each array. A block without one is missing."""
    columns = ["set", "block", "rows", "features", "scale", "output", "loss_weight", "curvature", "content"]
    return columns if manifest.schema_version > 1 else columns[:-1]


def stored_layout(manifest: Manifest, rows: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name → shape and type of every array of a set with so many rows."""
    return layout(rows, manifest.spec.dim, manifest.dtype, manifest.schema_version)


def create_arrays(store: Store, name: str, manifest: Manifest, compression: Compression) -> None:
    """Create the arrays of a set, except those that exist already."""
    spec = manifest.spec
    codecs: list[Any] = [] if compression == "none" else [BloscCodec(cname=compression, shuffle="bitshuffle")]
    for array, (shape, dtype) in stored_layout(manifest, spec.num_samples).items():
        # A block of features is one object, made of batches; the last block has only the batches that exist.
        inner, outer = ((size, *shape[1:]) for size in (spec.batch_size, spec.block_size))
        shards = {"chunks": inner, "shards": outer} if array == "features" else {"chunks": outer}
        _create(
            store,
            f"{name}/{array}",
            shape=shape,
            dtype=dtype,
            compressors=[*codecs, Crc32cCodec()] if array == "features" else None,
            fill_value=FILL.get(np.dtype(dtype).str, np.nan),
            dimension_names=("sample", "feature")[: len(shape)],
            **shards,
        )
    columns = record_columns(manifest)
    _create(
        store,
        f"{name}/{BLOCKS}",
        shape=(spec.num_blocks, len(columns)),
        dtype="<u8",
        chunks=(1, len(columns)),
        compressors=None,
        fill_value=0,
        attributes={"columns": columns},
        # All records are in one folder, where nothing but a file can be mistaken for one.
        chunk_key_encoding={"name": "default", "separator": "."},
    )


def _create(store: Store, name: str, **options: Any) -> None:
    try:
        zarr.create_array(store, name=name, zarr_format=3, **options)
    except ContainsArrayError:
        return


def grow_arrays(store: Store, name: str, manifest: Manifest) -> None:
    """Resize the arrays of a set to the lengths in `manifest`."""
    for array, shape in _shapes(manifest):
        found = zarr.open_array(store, path=f"{name}/{array}", mode="r+", zarr_format=3)
        if found.shape[0] < shape[0]:
            found.resize(shape)


def open_arrays(store: Store, name: str, manifest: Manifest, mode: Any) -> dict[str, zarr.Array]:
    """Open the arrays of a set.

    Raises:
        ValueError: one of them is not what `manifest` says.
    """
    spec = manifest.spec
    types = {array: dtype for array, (_, dtype) in stored_layout(manifest, 1).items()} | {BLOCKS: "<u8"}
    found = {}
    for array, shape in _shapes(manifest):
        opened = zarr.open_array(store, path=f"{name}/{array}", mode=mode, zarr_format=3)
        outer = (1 if array == BLOCKS else spec.block_size, *shape[1:])
        inner = (spec.batch_size, spec.dim) if array == "features" else outer
        # They are longer if a process was killed while it grew the set.
        if opened.shape[:1] < shape[:1] or opened.shape[1:] != shape[1:] or opened.dtype != np.dtype(types[array]):
            raise ValueError(f"its {array} is {opened.dtype} {opened.shape}, and {types[array]} {shape} was expected")
        if (opened.chunks, opened.shards or opened.chunks) != (inner, outer):
            raise ValueError(f"its {array} is cut into {opened.shards} and {opened.chunks}, not {outer} and {inner}")
        strange = set(_codecs(opened.metadata.to_dict()["codecs"])) - CODECS
        if strange:
            raise ValueError(f"its {array} is encoded with {', '.join(sorted(strange))}")
        found[array] = opened
    return found


def _shapes(manifest: Manifest) -> Iterator[tuple[str, tuple[int, ...]]]:
    spec: FeatureSpec = manifest.spec
    for array, (shape, _) in stored_layout(manifest, spec.num_samples).items():
        yield array, shape
    yield BLOCKS, (spec.num_blocks, len(record_columns(manifest)))


def _codecs(found: Any) -> Iterator[str]:
    """The names of codecs and of those inside them."""
    for codec in found:
        yield codec["name"]
        configuration = codec.get("configuration")
        if isinstance(configuration, Mapping):
            yield from _codecs(configuration.get("codecs", ()))
