"""A model as an extractor needs it, put back afterwards."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def requiring(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Inside, of all parameters of `model` those named require a gradient and no others.

    The fast path of transformer layers is off: it computes without calling the modules inside.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wanted = {id(model.get_parameter(name)) for name in names}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for parameter, state in before:
            if state != (id(parameter) in wanted):
                parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for parameter, state in before:
            parameter.requires_grad_(state)
