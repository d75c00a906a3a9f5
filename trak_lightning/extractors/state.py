"""Prepare a model for an extractor, and restore it afterwards."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


def parameters_of(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """These parameters of `model`, which may be a TorchScript module, by name."""
    known = dict(model.named_parameters(remove_duplicate=False))
    return {name: known[name] for name in names}


@contextmanager
def requiring(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Make exactly the parameters in `names` require a gradient while the context is open.

    The fast path of transformer layers is off, since it skips the modules inside.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wanted = {id(parameter) for parameter in parameters_of(model, names).values()}
    try:
        for parameter, state in before:
            if state != (id(parameter) in wanted):
                parameter.requires_grad_(id(parameter) in wanted)
        with without_fast_path():
            yield
    finally:
        for parameter, state in before:
            parameter.requires_grad_(state)


@contextmanager
def kept_grads(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Set ``.grad`` of the parameters to None while the context is open, and restore it on exit."""
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, grad in zip(parameters, before, strict=True):
            parameter.grad = grad


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Turn off the fast path of transformer layers, which runs under ``no_grad``, skips modules, and fails under autocast."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
