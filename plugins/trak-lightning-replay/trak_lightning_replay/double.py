"""Compute in 64 bits for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn


@contextmanager
def in_double(module: nn.Module) -> Iterator[None]:
    """Convert the floating-point parameters and buffers of a module in place, and put back what they were."""
    tensors = {id(each): each for each in (*module.parameters(), *module.buffers()) if each.is_floating_point()}
    before = [(tensor, tensor.data) for tensor in tensors.values()]
    default = torch.get_default_dtype()
    for tensor, data in before:
        tensor.data = data.double()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        for tensor, data in before:
            tensor.data = data


def doubled(batch: Any) -> Any:
    """The batch with its floating-point tensors in 64 bits."""
    return apply_to_collection(batch, Tensor, lambda each: each.double() if each.is_floating_point() else each)
