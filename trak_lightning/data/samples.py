"""Taking a batch apart into samples. A tensor whose first dimension is B holds one entry a sample; anything else is
shared by all."""

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import vmap

from trak_lightning.data.trees import flatten, map_leaves
from trak_lightning.errors import DataError


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


def is_batched(leaf: Any, size: int) -> bool:
    """Whether a leaf of the batch holds one entry a sample."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size


def take_sample(batch: Any, sample: int, size: int) -> Any:
    """The batch of one sample."""
    return map_leaves(lambda leaf: leaf[sample : sample + 1] if is_batched(leaf, size) else leaf, batch)


def over_samples(function: Callable[..., Any], *args: Any, in_dims: Any = 0, chunk_size: int | None = None) -> Any:
    """``vmap(function)(*args)``, without its warnings on operators that it does one by one: that is what is wanted."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return vmap(function, in_dims=in_dims, chunk_size=chunk_size)(*args)
