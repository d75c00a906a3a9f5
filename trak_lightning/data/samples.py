"""A batch together with the way to fetch its samples anew, and slicing tensors whose first dimension holds the samples."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import vmap
from typing_extensions import Self

from trak_lightning.data.trees import deep_leaves, flatten, map_leaves
from trak_lightning.errors import DataError


@dataclass(frozen=True)
class SampleBatch:
    """A collated batch of B samples, on the device of the model.

    What a batch looks like says nothing reliable about its samples: graphs are laid end to end, sequences come time first,
    tensors are shared by all samples. So B is told, and samples are never cut out of the batch: they are fetched and
    collated anew, by the user's own code.

    Args:
        data: what the task is given.
        size: B.
        load: collate the samples at these positions of the batch, in this order, alone.
        extent: how many numbers each sample holds, (B,), where they were read.
    """

    data: Any
    size: int
    load: Callable[[Sequence[int]], Any]
    extent: npt.NDArray[np.int64] | None = None

    @classmethod
    def of(cls, samples: Sequence[Any], collate: Callable[[list[Any]], Any]) -> Self:
        """The batch that `collate` makes of `samples`."""
        return cls(collate(list(samples)), len(samples), lambda positions: collate([samples[at] for at in positions]))

    @classmethod
    def of_rows(cls, data: Any, size: int) -> Self:
        """A batch whose samples are the entries of the first dimension of every tensor that has B of them."""
        return cls(
            data,
            size,
            lambda positions: map_leaves(lambda leaf: leaf[list(positions)] if is_batched(leaf, size) else leaf, data),
        )

    def fetch(self, positions: Sequence[int]) -> "SampleBatch":
        """The batch of the samples at these positions, in this order; a sample may occur several times."""
        chosen = list(positions)
        return SampleBatch(
            self.load(chosen), len(chosen), lambda positions: self.load([chosen[at] for at in positions])
        )

    @property
    def structure(self) -> tuple[Any, ...]:
        """What batches of one kind have in common: types and dimensions of the leaves, and which of these are B."""
        return tuple(
            (leaf.dtype, tuple(length == self.size for length in leaf.shape))
            if isinstance(leaf, Tensor) and not _has_no_shape(leaf)
            else type(leaf)
            for leaf in deep_leaves(self.data)
        )


def batch_size(batch: Any) -> int:
    """B: the length of the first dimension that most tensors of `batch` have in common.

    Raises:
        DataError: there is no tensor in the batch.
    """
    sizes = [leaf.shape[0] for leaf in flatten(batch)[0] if isinstance(leaf, Tensor) and leaf.ndim]
    if not sizes:
        raise DataError(
            f"no tensor with a first dimension is in the batch ({type(batch).__name__}), so it has no samples to tell apart. "
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
    """The batch of one sample, of a batch whose tensors have the samples first."""
    return map_leaves(lambda leaf: leaf[sample : sample + 1] if is_batched(leaf, size) else leaf, batch)


def over_samples(function: Callable[..., Any], *args: Any, in_dims: Any = 0, chunk_size: int | None = None) -> Any:
    """``vmap(function)(*args)``, without its warnings about operators that it computes one by one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return vmap(function, in_dims=in_dims, chunk_size=chunk_size)(*args)
