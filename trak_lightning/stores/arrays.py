"""The rows of a block as the arrays that a store keeps, and back."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from trak_lightning.errors import NonFiniteGradientError
from trak_lightning.stores.base import FeatureRows
from trak_lightning.stores.encoding import SCALED, STORED, column_dtype, decode, encode, overflows

Array = npt.NDArray[Any]
COLUMNS = ("output", "loss_weight", "curvature")


def layout(rows: int, dim: int, dtype: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name → shape and type of every array of a block of `rows` rows."""
    scale = {"scale": ((rows,), "<f4")} if dtype in SCALED else {}
    return {"features": ((rows, dim), STORED[dtype]), **scale} | {
        name: ((rows,), column_dtype(dtype)) for name in COLUMNS
    }


def to_arrays(rows: FeatureRows, dtype: str, where: str) -> dict[str, Array]:
    """What is stored of `rows`; `where` is named in errors.

    Raises:
        NonFiniteGradientError: a number is too large for `dtype`.
    """
    stored, scale = encode(rows.features, dtype)
    arrays = {"features": stored} | ({} if scale is None else {"scale": scale})
    with np.errstate(over="ignore"):
        arrays |= {name: np.ascontiguousarray(getattr(rows, name), column_dtype(dtype)) for name in COLUMNS}
    too_large = [name for name in COLUMNS if not np.isfinite(arrays[name]).all()]
    if stored is not rows.features and overflows(stored, scale, dtype):
        too_large.insert(0, "features")
    for name in too_large:
        kind = dtype if name == "features" else np.dtype(column_dtype(dtype)).name
        raise NonFiniteGradientError(
            f"the {name} of {where} overflow {kind}: largest value {np.abs(getattr(rows, name)).max():.3g}. "
            "Choose dtype float64 for the store."
        )
    return arrays


def from_arrays(arrays: dict[str, Array], start: int, dtype: str) -> FeatureRows:
    """The rows whose first sample is `start`."""
    features = decode(arrays["features"], arrays.get("scale"), dtype)
    index = np.arange(start, start + len(features))
    return FeatureRows(index, features, **{name: arrays[name] for name in COLUMNS})


def checksum(values: Array) -> str:
    """XXH3-64 of the bytes of a contiguous array, 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(values.data)
