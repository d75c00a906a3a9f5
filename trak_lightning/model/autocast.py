"""Mixed precision for passes in addition to the one that Lightning makes."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor

AutocastState: TypeAlias = tuple[str, torch.dtype] | None
"""Device and dtype; None where autocast is off."""


def is_cast() -> bool:
    """Whether autocast is on, on any device."""
    return any(map(torch.is_autocast_enabled, ("cpu", "cuda")))


def autocast_state(leaves: list[Any]) -> AutocastState:
    """Record the current autocast state where a module is called with `leaves`; the backward pass does not know it."""
    device = next((leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)), "cpu")
    return (device, torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None


def under_autocast(state: AutocastState) -> AbstractContextManager[Any]:
    """Return a context with this autocast state; None changes nothing."""
    return nullcontext() if state is None else torch.autocast(*state, cache_enabled=False)


@contextmanager
def as_called() -> Iterator[None]:
    """Inside, only the precision of the Trainer counts: not autocast nor inference mode in which the caller happens to be."""
    with torch.inference_mode(False), without_autocast():
        yield


@contextmanager
def cast_anew() -> Iterator[None]:
    """Cast weights at each use. Older torch keeps what it cast under no_grad and returns it to passes with gradients, which
    stop there; Lightning before 2.6 leaves that cache on."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextmanager
def without_autocast() -> Iterator[None]:
    """Inside, nothing is cast: numbers can be compared up to the rounding of the model's own precision."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
