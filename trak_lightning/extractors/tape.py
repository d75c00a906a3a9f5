"""Recording one forward pass with hooks, and turning its backward pass into gradient blocks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from trak_lightning.errors import UnsupportedModelError
from trak_lightning.extractors.rules import Rule, find_rule
from trak_lightning.extractors.rules.fallback import RecordedCall, rerun
from trak_lightning.gradients import ParameterLayout, Sink

COMPOSITE = (nn.MultiheadAttention,)
"""Modules that use the parameters of the modules inside them without calling these."""


class _Anchor(torch.autograd.Function):
    """The identity, as the root of a graph: makes the first layer's output require a gradient, so that the backward pass
    reaches it though no parameter does. A copy, because a leaf could not be changed in place afterwards."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, torch.zeros(())


class Tape:
    """Hooks on every module that owns attributed parameters, for one forward and backward pass.

    Parameters must not require a gradient while a tape is open. A context manager: hooks are removed on the way out.
    """

    def __init__(self, model: nn.Module, layout: ParameterLayout, sink: Sink, size: int) -> None:
        self._model = model
        self._layout = layout
        self._sink = sink
        self._size = size
        self._anchor = torch.zeros((), requires_grad=True)
        self._handles: list[Any] = []
        self._calls: list[tuple[nn.Module, dict[str, str], RecordedCall]] = []

    def __enter__(self) -> "Tape":
        for name, module, names in owners(self._model, self._layout):
            rule = find_rule(module)
            hook = self._layer_hook(name, module, names, rule) if rule else self._fallback_hook(module, names)
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *exception: object) -> None:
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def backward(self, output: Tensor) -> None:
        """Push the blocks of all layers."""
        torch.autograd.grad(output.sum(), self._anchor)
        self._remove_hooks()
        while self._calls:
            module, names, call = self._calls.pop()
            if call.output_grads:
                self._require_batched(names, list(call.output_grads.values()))
                for block in rerun(module, names, call, self._size):
                    self._sink(block)

    def _layer_hook(self, name: str, module: nn.Module, names: dict[str, str], rule: Rule) -> Callable[..., Tensor]:
        def on_forward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                return output
            input = args[0] if args else next(iter(kwargs.values()))
            output = self._on_graph(self._over_batch(output))
            if output.shape[0] == self._size and input.shape[0] != self._size:
                input = self._over_batch(input)
            kept, version = input.detach(), input._version

            def on_backward(output_grad: Tensor) -> None:
                if kept._version != version:
                    raise UnsupportedModelError(
                        f"the input of module {name!r} is changed in place after the module has used it. Make that operation "
                        "out of place: x = x + y instead of x += y, ReLU(inplace=False)."
                    )
                self._require_batched(names, [output_grad])
                with torch.no_grad(), torch.autocast(output_grad.device.type, enabled=False):
                    for block in rule(module, names, *_of_one_dtype(kept, output_grad)):
                        self._sink(block)

            output.register_hook(on_backward)
            return output

        return on_forward

    def _fallback_hook(self, module: nn.Module, names: dict[str, str]) -> Callable[..., Any]:
        def on_forward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if not torch.is_grad_enabled():
                return output
            # Copies: nothing here knows how long the module's arguments stay as they are.
            args, kwargs = tree_map(
                lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs)
            )
            call = RecordedCall(args, kwargs, {})
            leaves, structure = tree_flatten(output)
            for position, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor) and leaf.is_floating_point():
                    leaves[position] = leaf = self._on_graph(self._over_batch(leaf))
                    leaf.register_hook(_collect(call.output_grads, position))
            self._calls.append((module, names, call))
            return tree_unflatten(leaves, structure)

        return on_forward

    def _on_graph(self, output: Tensor) -> Tensor:
        if output.requires_grad:
            return output
        anchored: Tensor = _Anchor.apply(output, self._anchor)
        return anchored

    def _over_batch(self, value: Tensor) -> Tensor:
        """Give a value that all samples share, (1, …), an entry for each, so that its gradient comes sample by sample."""
        if self._size > 1 and value.ndim > 1 and value.shape[0] == 1:
            return value.expand(self._size, *value.shape[1:]).clone()
        return value

    def _require_batched(self, names: dict[str, str], grads: list[Tensor]) -> None:
        for grad in grads:
            if grad.ndim == 0 or grad.shape[0] != self._size:
                raise UnsupportedModelError(
                    f"the output of the module that owns {', '.join(names.values())} has shape {tuple(grad.shape)}, whose first "
                    f"dimension is not the batch ({self._size} samples), so its gradient cannot be told apart by sample. Put "
                    "the batch dimension first, or use extractor='functional' or 'iterative'."
                )


def owners(model: nn.Module, layout: ParameterLayout) -> list[tuple[str, nn.Module, dict[str, str]]]:
    """The modules that own attributed parameters directly: name, module, and own parameter name → name in the layout.

    Tied parameters have one name in the layout and several owners. A module in `COMPOSITE` owns all that is inside it.
    """
    layout_names = {id(model.get_parameter(slot.name)): slot.name for slot in layout}
    found: list[tuple[str, nn.Module, dict[str, str]]] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        composite = isinstance(module, COMPOSITE)
        parameters = module.named_parameters(recurse=composite)
        own = {key: layout_names[id(parameter)] for key, parameter in parameters if id(parameter) in layout_names}
        if own and module not in inside:
            found.append((name, module, own))
        if composite:
            inside.update(module.modules())
    return found


def _collect(grads: dict[int, Tensor], position: int) -> Callable[[Tensor], None]:
    def on_backward(grad: Tensor) -> None:
        grads[position] = grad

    return on_backward


def _of_one_dtype(input: Tensor, output_grad: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, or float64 if one of them is: what autocast computed in 16 bits is summed in 32."""
    dtype = torch.promote_types(output_grad.dtype, torch.float32)
    if not input.is_floating_point():
        return input, output_grad.to(dtype)
    dtype = torch.promote_types(dtype, input.dtype)
    return input.to(dtype), output_grad.to(dtype)
