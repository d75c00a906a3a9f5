"""The stored features of a split under one checkpoint, as an array that reads only what is asked for."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from trak_lightning.run.arrays import Array
from trak_lightning.stores.base import FeatureSet


class FeatureArray:
    """Features φ (n, k) of a feature set, indexed as a NumPy array is; every index reads only the blocks that it touches.

    >>> array[5], array[-1], array[10:20], array[[3, 1, 3]], array[mask], array[:100, :8]  # doctest: +SKIP
    >>> np.asarray(array)  # reads all of it  # doctest: +SKIP

    The other columns, (n,) each, are read when they are first asked for, and kept: `output`, `loss_weight`, `curvature`,
    `content`; `index` is 0 … n − 1.

    Args:
        feature_set: an open feature set; reading a block that is missing raises `IncompleteRunError`.
    """

    ndim = 2

    def __init__(self, feature_set: FeatureSet) -> None:
        self._set = feature_set

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k)."""
        return self._set.spec.num_samples, self._set.spec.dim

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The type of the features as they are read, found by reading one row."""
        return self._set.take([0]).dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        spec = self._set.spec
        return f"FeatureArray({spec.split!r}, checkpoint {spec.checkpoint}, shape {self.shape})"

    def __getitem__(self, key: Any) -> Any:
        """Read rows, or parts of rows: what ``np.asarray(self)[key]`` gives, without reading the rest.

        Args:
            key: an integer, a slice, integers or booleans, or a tuple of one of these for rows and any index for columns.

        Raises:
            IndexError: as NumPy.
        """
        rows, *rest = self._expanded(key if isinstance(key, tuple) else (key,))
        positions = np.arange(len(self))[rows]  # as NumPy understands any index of rows
        if isinstance(rows, slice):
            read, local = self._read_range(positions), (slice(None), *rest)
        else:
            read = self._set.take(positions.reshape(-1))
            local = (np.arange(positions.size).reshape(positions.shape), *rest)
        return read[local]

    def __iter__(self) -> Iterator[Array]:
        for block in self._set.blocks():
            yield from block.features

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """Read everything."""
        if copy is False:
            raise ValueError("stored features cannot become an array without a copy: they are read from the store")
        return np.asarray(self[:], dtype)

    @property
    def index(self) -> npt.NDArray[np.int64]:
        """Positions of the samples in their dataset."""
        return np.arange(len(self))

    @cached_property
    def output(self) -> Array:
        """Model outputs f."""
        return self._set.column("output")

    @cached_property
    def loss_weight(self) -> Array:
        """q = −∂ℓ/∂f."""
        return self._set.column("loss_weight")

    @cached_property
    def curvature(self) -> Array:
        """r = ∂²ℓ/∂f²."""
        return self._set.column("curvature")

    @cached_property
    def content(self) -> npt.NDArray[np.uint64]:
        """The xxh3_64 of the content of each sample; 0 where it is unknown."""
        return self._set.column("content")

    def _expanded(self, key: tuple[Any, ...]) -> tuple[Any, ...]:
        """The key with ``...`` written out, so that its first element is that of the rows."""
        if any(part is None for part in key):
            raise IndexError("stored features have two dimensions: rows and columns; add others after reading")
        places = [place for place, part in enumerate(key) if part is Ellipsis]
        if len(key) - len(places) > self.ndim or len(places) > 1:
            raise IndexError(f"too many indices: stored features have {self.ndim} dimensions, got {key!r}")
        for place in places:
            missing = self.ndim - (len(key) - 1)
            key = (*key[:place], *[slice(None)] * missing, *key[place + 1 :])
        return key or (slice(None),)

    def _read_range(self, positions: npt.NDArray[np.int64]) -> Array:
        """Read the rows of a slice."""
        if not len(positions):
            return np.empty((0, self.shape[1]), self.dtype)
        if positions[-1] - positions[0] == len(positions) - 1:  # consecutive: only once in memory
            return self._set.rows(int(positions[0]), int(positions[-1]) + 1).features
        return self._set.take(positions)
