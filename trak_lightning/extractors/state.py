"""Prepare a model for an extractor, and restore it afterwards."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trak_lightning.errors import TrakError, UnsupportedModelError
from trak_lightning.model.dtensor import whole


def parameters_of(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """These parameters of `model`, which may be a TorchScript module, by name."""
    known = dict(model.named_parameters(remove_duplicate=False))
    return {name: known[name] for name in names}


@contextmanager
def requiring(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Make exactly the parameters in `names` require a gradient while the context is open.

    The fast path of transformer layers is off, since it skips the modules inside.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    before = [(parameter, parameter.requires_grad) for parameter in dict.fromkeys(known.values())]
    wanted = {id(known[name]) for name in names}
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
    """Set ``.grad`` of the parameters to None while the context is open, and restore it on exit.

    What is called once ``.grad`` is complete is not called: it may be an optimizer that steps during the backward pass.
    """
    before = [parameter.grad for parameter in parameters]
    hooks = [getattr(parameter, "_post_accumulate_grad_hooks", None) or {} for parameter in parameters]
    kept = [dict(each) for each in hooks]
    for parameter, each in zip(parameters, hooks, strict=True):
        parameter.grad = None
        each.clear()
    try:
        yield
    finally:
        for parameter, grad, each, own in zip(parameters, before, hooks, kept, strict=True):
            parameter.grad = grad
            each.update(own)


def gradients(total: Tensor, parameters: Sequence[nn.Parameter], model: nn.Module) -> list[Tensor | None]:
    """Differentiate a number by these parameters; None for those that it does not depend on.

    Raises:
        UnsupportedModelError: autograd cannot.
    """
    with kept_grads(parameters):
        return taken_gradients(total, parameters, model)


def taken_gradients(total: Tensor, parameters: Sequence[nn.Parameter], model: nn.Module) -> list[Tensor | None]:
    """The same, where ``.grad`` of the parameters is None, and is None again afterwards unless an error is raised."""
    try:
        total.backward()  # reentrant checkpointing does not support autograd.grad
    except TrakError:
        raise
    except Exception as error:  # such as an assertion in a backward of the model's own
        if out_of_memory(error):
            raise
        raise UnsupportedModelError(
            f"autograd cannot differentiate {type(model).__name__}, so training it in this mode (train or eval) would fail too: {error}"
        ) from error
    found = [whole(parameter.grad) for parameter in parameters]
    for parameter, grad in zip(parameters, found, strict=True):
        if grad is not None:
            parameter.grad = None
    return [grad.to_dense() if grad is not None and grad.is_sparse else grad for grad in found]


def out_of_memory(error: Exception) -> bool:
    """Whether there was not enough memory; on a CPU, torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class without_assigned_data(TorchFunctionMode):
    """Refuse ``x.data = y``, which crashes the process if y belongs to a transform of torch.func that ends before x.

    Raises:
        UnsupportedModelError: such an assignment.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _ASSIGN_DATA:
            raise UnsupportedModelError(
                "the forward of a module assigns to ``.data``, which vmap cannot follow. Use extractor='auto' or 'iterative', or change "
                "parameters and buffers in train mode only."
            )
        return func(*args, **(kwargs or {}))


_ASSIGN_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Turn off the fast path of transformer layers, which runs under ``no_grad``, skips modules, and fails under autocast."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
