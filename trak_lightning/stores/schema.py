"""Convert the rows of a block to the arrays that a store keeps, and back."""

import numpy as np
import xxhash

from trak_lightning.errors import NonFiniteGradientError
from trak_lightning.run.arrays import Array
from trak_lightning.stores.base import FeatureRows
from trak_lightning.stores.encoding import SCALED, STORED, column_dtype, decode, encode, overflows

SCHEMA_VERSION = 2
"""Of manifests and blocks. Version 1 had no array ``content``; its rows are read with zeros there."""
NUMBERS = ("output", "loss_weight", "curvature")
"""The columns that hold one floating-point number per sample."""


def layout(rows: int, dim: int, dtype: str, version: int = SCHEMA_VERSION) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name → shape and type of every array that is stored for `rows` samples."""
    scale = {"scale": ((rows,), "<f4")} if dtype in SCALED else {}
    content = {"content": ((rows,), "<u8")} if version > 1 else {}
    numbers = {name: ((rows,), column_dtype(dtype)) for name in NUMBERS}
    return {"features": ((rows, dim), STORED[dtype]), **scale, **numbers, **content}


def to_arrays(rows: FeatureRows, dtype: str, where: str) -> dict[str, Array]:
    """Encode `rows` as the arrays of `layout`; `where` is named in errors.

    Raises:
        NonFiniteGradientError: a number is too large for `dtype`.
    """
    stored, scale = encode(rows.features, dtype)
    arrays = {"features": stored} | ({} if scale is None else {"scale": scale})
    with np.errstate(over="ignore"):
        arrays |= {name: np.ascontiguousarray(getattr(rows, name), column_dtype(dtype)) for name in NUMBERS}
    too_large = [name for name in NUMBERS if not np.isfinite(arrays[name]).all()]
    if stored is not rows.features and overflows(stored, scale, dtype):
        too_large.insert(0, "features")
    for name in too_large:
        kind = dtype if name == "features" else np.dtype(column_dtype(dtype)).name
        raise NonFiniteGradientError(
            f"the {name} of {where} overflow {kind}: largest value {np.abs(getattr(rows, name)).max():.3g}. "
            "Choose dtype float64 for the store."
        )
    return arrays | {"content": np.ascontiguousarray(rows.content, "<u8")}


def from_arrays(arrays: dict[str, Array], start: int, dtype: str) -> FeatureRows:
    """Decode the arrays of consecutive samples, the first of which is `start`."""
    features = decode(arrays["features"], arrays.get("scale"), dtype)
    index = np.arange(start, start + len(features))
    arrays = {"content": np.zeros(len(features), np.uint64), **arrays}
    return FeatureRows(index, features, *(arrays[name] for name in (*NUMBERS, "content")))


def checksum(values: Array) -> str:
    """XXH3-64 of the bytes of a contiguous array, as 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(values.data)
