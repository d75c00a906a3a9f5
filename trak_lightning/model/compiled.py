"""Undo `torch.compile`: hooks and per-sample transforms need the original modules."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_WRAPPED = "_orig_mod"


def original(module: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` was given; any other module unchanged."""
    wrapped = getattr(module, _WRAPPED, None)
    # By name: importing torch._dynamo takes a second.
    return wrapped if isinstance(wrapped, nn.Module) and type(module).__name__ == "OptimizedModule" else module


def original_name(name: str) -> str:
    """Return the name of a parameter without what ``torch.compile`` inserted."""
    return name.replace(f"{_WRAPPED}.", "")


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[nn.Module]:
    """Replace compiled modules by the original ones, inside the model and around it, and restore them afterwards."""
    model = original(model)
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    compiled: list[tuple[nn.Module, object]] = []
    try:
        for module in list(model.modules()):
            for name, child in module.named_children():
                if original(child) is not child:
                    replaced.append((module, name, child))
                    module._modules[name] = original(child)
            if getattr(module, "_compiled_call_impl", None) is not None:  # module.compile(), in place
                compiled.append((module, module._compiled_call_impl))
                module._compiled_call_impl = None
        yield model
    finally:
        for module, name, child in replaced:
            module._modules[name] = child
        for module, implementation in compiled:
            module._compiled_call_impl = implementation  # type: ignore[assignment]
