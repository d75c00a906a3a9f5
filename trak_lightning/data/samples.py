"""Fetch single samples of a batch again, and slice tensors whose first dimension holds the samples."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import vmap
from typing_extensions import Self

from trak_lightning.data.trees import deep_leaves, flatten, map_leaves, snapshot
from trak_lightning.errors import DataError


@dataclass(frozen=True)
class SampleBatch:
    """A collated batch of B samples, on the device of the model.

    The tensors of a batch do not show reliably where its samples are: graphs are concatenated, sequences may have time first,
    and all samples may share a tensor. So B is given, and samples are not sliced out of the batch, but fetched and collated
    again with the user's code.

    Args:
        collated: the batch.
        size: B.
        load: collates the samples at these positions of the batch, in this order, and no others.
        extent: how many numbers each sample holds, (B,), where they were read.
        differs: which entries of the batch differ from those of samples collated alone, (B,) by name; see
            `trak_lightning.data.collation_check`.
    """

    collated: Any
    size: int
    load: Callable[[Sequence[int]], Any]
    extent: npt.NDArray[np.int64] | None = None
    differs: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    _alone: dict[int, "SampleBatch"] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, samples: Sequence[Any], collate: Callable[[list[Any]], Any]) -> Self:
        """Collate `samples` with `collate`."""
        return cls(collate(list(samples)), len(samples), lambda positions: collate([samples[at] for at in positions]))

    @classmethod
    def of_rows(cls, data: Any, size: int) -> Self:
        """Create from data in which the first dimension of every tensor holds the samples, if its length is B."""
        kept = snapshot(data, clone=True)
        return cls(
            data,
            size,
            lambda positions: map_leaves(
                lambda leaf: leaf[list(positions)] if is_batched(leaf, size) else snapshot(leaf, clone=True), kept
            ),
        )

    @property
    def data(self) -> Any:
        """The batch to pass to the task, as it was collated: if a model has changed what it was given, this is a copy of the
        batch collated again."""
        return self._intact.get()

    @cached_property
    def _intact(self) -> "_Intact":
        return _Intact(self.collated, partial(self.load, range(self.size)))  # no closure over self: a reference cycle

    def fetch(self, positions: Sequence[int]) -> "SampleBatch":
        """The batch of the samples at these positions, in this order; a sample may occur several times."""
        chosen = list(positions)
        if len(chosen) == 1 and chosen[0] in self._alone:
            return self._alone[chosen[0]]
        found = SampleBatch(
            self.load(chosen), len(chosen), lambda positions: self.load([chosen[at] for at in positions])
        )
        if len(chosen) == 1:
            self._alone[chosen[0]] = found
        return found

    @property
    def structure(self) -> tuple[Any, ...]:
        """The types and dimensions of the leaves, and which dimensions have length B: equal for batches of one kind."""
        return tuple(
            (leaf.dtype, tuple(length == self.size for length in leaf.shape))
            if isinstance(leaf, Tensor) and not _has_no_shape(leaf)
            else type(leaf)
            for leaf in deep_leaves(self.data)
        )


class _Intact:
    """Hands out a batch. Once a model has changed it (``x -= mean``, ``batch.pop("labels")``), collate it again, and hand out
    copies. Of a batch with arrays, always hand out copies."""

    def __init__(self, batch: Any, again: Callable[[], Any]) -> None:
        self._batch = batch
        self._again = again
        arrays = any(isinstance(leaf, np.ndarray) for leaf in deep_leaves(batch))  # whose changes leave no trace
        self._seen: list[tuple[int, int]] | None = None if arrays else _versions(batch)

    def get(self) -> Any:
        if self._seen is not None and _versions(self._batch) != self._seen:
            self._batch, self._seen = self._again(), None
        return self._batch if self._seen is not None else snapshot(self._batch, clone=True)


def _versions(batch: Any) -> list[tuple[int, int]]:
    """Which values a batch holds, and how often its tensors were changed in place."""
    return [
        (id(leaf), leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else 0)
        for leaf in deep_leaves(batch)
    ]


def batch_size(batch: Any) -> int:
    """B: the length of the first dimension that most tensors of `batch` have in common.

    Raises:
        DataError: there is no tensor in the batch.
    """
    sizes = [leaf.shape[0] for leaf in flatten(batch)[0] if isinstance(leaf, Tensor) and leaf.ndim]
    if not sizes:
        raise DataError(
            f"no tensor with a first dimension is in the batch ({type(batch).__name__}), so B is unknown. "
            "Return tensors from the collate function, in tuples, lists, dicts or dataclasses."
        )
    return max(sizes, key=sizes.count)


def _has_no_shape(leaf: Tensor) -> bool:
    """Whether it is a nested tensor of the old layout."""
    return leaf.is_nested and leaf.layout is torch.strided


def is_batched(leaf: Any, size: int) -> bool:
    """Whether a leaf is a tensor whose first dimension has length `size`."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size


def take_sample(batch: Any, sample: int, size: int) -> Any:
    """Slice the batch of one sample out of a batch whose tensors have the samples first."""
    return map_leaves(lambda leaf: leaf[sample : sample + 1] if is_batched(leaf, size) else leaf, batch)


def over_samples(function: Callable[..., Any], *args: Any, in_dims: Any = 0, chunk_size: int | None = None) -> Any:
    """``vmap(function)(*args)``, without its warnings about operators that it runs one sample at a time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return vmap(function, in_dims=in_dims, chunk_size=chunk_size)(*args)
