"""Leave the user's model as it was: its weights, dtype and device, and what its modules keep between calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from torch import nn

from trak_lightning.model.dtensor import is_sharded
from trak_lightning.model.module_state import SteadyState


@contextmanager
def leave_unchanged(model: nn.Module) -> Iterator[None]:
    """Restore parameters with their ``.grad`` and ``requires_grad``, buffers and cached values of `model` at the end, in the memory where they were,
    so that state dicts taken before still hold them. A model that was sharded meanwhile stays sharded."""
    before = {
        name: (tensor.data, tensor.detach().clone(), tensor.grad)
        for name, tensor in chain(model.named_parameters(), model.named_buffers())
    }
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    kept = SteadyState(model, parameters=False)
    try:
        yield
    finally:
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            if name in before and not is_sharded(tensor):
                place, value, grad = before[name]
                place.copy_(value)
                tensor.data = place
                tensor.grad = grad  # Lightning sets it to None
        for parameter, state in trained:
            parameter.requires_grad_(state)  # a forward pass may freeze some
        kept.restore()
