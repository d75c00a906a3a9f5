"""Encode features in fewer bits, and decode them.

| dtype | bytes per number | what is stored |
| --- | --- | --- |
| ``float64`` | 8 | the numbers |
| ``float32`` | 4 | the numbers, rounded to nearest |
| ``float16`` | 2 | each row divided by a power of two, so that it neither overflows nor underflows as a whole |
| ``bfloat16`` | 2 | the upper half of float32 as uint16, rounded to nearest, ties to even |
| ``int8`` | 1 | each row divided by its largest absolute value / 127, rounded to integers −127 … 127 |

Decoded numbers can be encoded again and give the same bits; the scales are chosen so that this holds exactly.
"""

from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from trak_lightning.run.arrays import Array

Dtype: TypeAlias = Literal["float32", "float64", "float16", "bfloat16", "int8"]
DTYPES = get_args(Dtype)
Compression: TypeAlias = Literal["none", "lz4", "zstd"]
COMPRESSIONS = get_args(Compression)
LARGEST_COMPRESSED = 2**32
"""Bytes: a compressed block that claims to be larger is refused, since a small file can unpack to any size."""
STORED = {"bfloat16": "<u2"} | {name: np.dtype(name).newbyteorder("<").str for name in DTYPES if name != "bfloat16"}
"""The type in files, little-endian."""
SCALED = ("float16", "int8")
"""These have a float32 ``scale`` per row: number = stored · scale."""

NEAR = 2**17
"""Numbers converted at a time, so that they stay in the processor's cache."""


def encode(features: Array, dtype: str) -> tuple[Array, Array | None]:
    """Encode rows (b, k); returns the stored rows and, for some types, their scales (b,).

    Numbers that `dtype` cannot hold become infinities in the rows or in the scales; see `overflows`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype in ("float32", "float64"):
            return np.ascontiguousarray(features, STORED[dtype]), None
        if dtype == "bfloat16":
            bits = np.ascontiguousarray(features, "<f4").view("<u4")
            return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2"), None
        scale = _float16_scale(features) if dtype == "float16" else _int8_scale(features)
        scaled = features / scale[:, None]
        stored = scaled if dtype == "float16" else np.clip(np.rint(scaled), -127, 127)
        return stored.astype(STORED[dtype]), scale


def decode(stored: Array, scale: Array | None, dtype: str) -> Array:
    """Decode stored rows to (b, k) numbers: float64 if `dtype` is, else float32."""
    if dtype == "bfloat16":
        return (stored.astype("<u4") << 16).view("<f4")
    if scale is None:
        return stored
    numbers = _from_float16(stored) if dtype == "float16" else stored.astype(np.float32)
    numbers *= scale[:, None]
    return numbers


def _from_float16(stored: Array) -> Array:
    """``stored.astype(np.float32)`` for finite numbers: the same bits in a sixth of the time."""
    numbers = np.empty(stored.shape, np.float32)
    step = max(1, NEAR // max(1, stored.shape[1]))
    for first in range(0, len(stored), step):
        piece = numbers[first : first + step]
        bits = piece.view(np.int32)
        bits[:] = stored[first : first + step].view("<i2")
        # Move sign, exponent and fraction to their places in float32, whose exponent bias is larger by 112.
        bits <<= 13
        bits &= -(2**31) | (2**28 - 1)
        piece *= np.float32(2.0**112)
    return numbers


def overflows(stored: Array, scale: Array | None, dtype: str) -> bool:
    """Whether some number was too large for `dtype`."""
    if dtype == "bfloat16":
        return bool(((stored & 0x7F80) == 0x7F80).any())
    return not bool(np.isfinite(stored if scale is None else scale).all())


def column_dtype(dtype: str) -> str:
    """The type of outputs, loss weights and curvatures that are stored with features of `dtype`."""
    return "<f8" if dtype == "float64" else "<f4"


def _float16_scale(features: Array) -> Array:
    """Powers of two that bring the largest number of each row to 2¹⁴ … 2¹⁵, as float16 rounds it."""
    fraction, exponent = np.frexp(_largest(features))
    # A fraction that float16 rounds up to 1 belongs to the next power of two, or writing again would scale otherwise.
    exponent += fraction >= 1 - 2.0**-12
    scale = np.ldexp(1.0, np.clip(exponent - 15, -126, None))
    return np.where(exponent > 128, np.inf, np.where(fraction == 0, 1.0, scale)).astype("<f4")


def _int8_scale(features: Array) -> Array:
    """Largest number / 127, rounded up to 16 bits, so that float32 holds its multiples by −127 … 127 exactly."""
    fraction, exponent = np.frexp(_largest(features) / 127)
    scale = np.ldexp(np.ceil(fraction * 2**16) / 2**16, exponent)
    scale = np.where(scale == 0, 1.0, np.maximum(scale, 2.0**-110))
    return np.where(127 * scale > np.finfo(np.float32).max, np.inf, scale).astype("<f4")


def _largest(features: Array) -> npt.NDArray[np.float64]:
    return np.maximum(features.max(axis=1), -features.min(axis=1)).astype(np.float64)
