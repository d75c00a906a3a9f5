"""Comparing what an extractor streams with what autograd says of the whole batch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trak_lightning.errors import UnsupportedModelError
from trak_lightning.extractors.state import requiring
from trak_lightning.gradients import GradientBlock, ParameterLayout
from trak_lightning.model.dtensor import whole
from trak_lightning.tasks.base import Task

_ROUNDED = 1e-11
"""The relative error of a gradient beyond which it has not been computed in float64 throughout."""


def sample_weights(size: int, like: Tensor) -> Tensor:
    """A different number for each sample, (B,): a sum with these weights is right only if every gradient has been told
    to its own sample."""
    return torch.linspace(0.5, 1.5, size, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Reference:
    """The gradient of Σ_b w_b f_b by parameter, None where the output does not depend on it; and how exactly autograd
    computes it: `precision` is that of the least precise floating-point numbers it seems to go through."""

    grads: dict[str, Tensor | None]
    precision: torch.dtype

    @property
    def finite(self) -> bool:
        return all(grad is None or bool(grad.isfinite().all()) for grad in self.grads.values())


def reference(model: nn.Module, task: Task, batch: Any, layout: ParameterLayout) -> Reference:
    """What autograd says of the whole batch. Twice in a model of float64, since norms, rotary embeddings and losses of
    many such models compute in float32 all the same."""
    grads = _gradients(model, task, batch, layout, 1.0)
    known = [grad for grad in grads.values() if grad is not None]
    if any(grad.dtype != torch.float64 for grad in known):
        return Reference(grads, max((grad.dtype for grad in known), key=lambda dtype: torch.finfo(dtype).eps))
    # A backward pass is linear but for rounding. By three, since powers of two round alike.
    again = _gradients(model, task, batch, layout, 3.0)
    thirds = [grad / 3 for grad in again.values() if grad is not None]
    error = _norm([one - other for one, other in zip(known, thirds, strict=True)])
    return Reference(grads, torch.float64 if error <= _ROUNDED * _norm(known) else torch.float32)


def _gradients(
    model: nn.Module, task: Task, batch: Any, layout: ParameterLayout, factor: float
) -> dict[str, Tensor | None]:
    names = [slot.name for slot in layout]
    with requiring(model, names):
        output = task.output(model, batch)
        require_graph(output, model, task)
        total = (output * (factor * sample_weights(len(output), output))).sum()
        parameters = [model.get_parameter(name) for name in names]
        # Not autograd.grad, which reentrant checkpointing refuses.
        grads = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        try:
            try:
                total.backward()
            except RuntimeError as error:
                raise UnsupportedModelError(
                    f"autograd itself cannot do {type(model).__name__}, so it cannot have been trained as it is: {error}"
                ) from error
            return {name: whole(parameter.grad) for name, parameter in zip(names, parameters, strict=True)}
        finally:
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad


class Audit:
    """A sink that subtracts what it is given, with the weights of `sample_weights`, from a reference. It works in the
    reference's memory: of p numbers there is one copy."""

    def __init__(self, layout: ParameterLayout, expected: Reference) -> None:
        self._layout = layout
        self._size = _norm([grad for grad in expected.grads.values() if grad is not None])
        self._tolerance = _tolerance(expected.precision)
        self._left = expected.grads
        self._sizes: dict[str, float] = {}

    def __call__(self, block: GradientBlock) -> None:
        size = next(len(value) for value in vars(block).values() if isinstance(value, Tensor))
        for samples, part in block.chunks(self._layout.by_name[block.name].numel):
            grad = part.dense()
            grad = grad.reshape(len(grad), -1)
            weighted = sample_weights(size, grad)[samples] @ grad
            left = self._left[block.name]
            if left is None:
                self._left[block.name] = weighted.neg_()
            else:
                left.sub_(weighted.view_as(left))
            self._sizes[block.name] = self._sizes.get(block.name, 0.0) + float(grad.norm(dim=1).sum())
            del grad  # before the next part is made

    def wrong(self) -> dict[str, str]:
        """The parameters that differ from the reference, and how; errors are measured against Σ_b ‖g_b‖."""
        found: dict[str, str] = {}
        for name, left in self._left.items():
            if name not in self._sizes:
                if left is not None and left.any():
                    found[name] = "not seen"
                continue
            assert left is not None
            error = float(left.norm())
            # A gradient that is zero but for rounding, as of the bias of attention keys, is noise in both.
            scale = max(self._sizes[name], 1e-3 * self._size)
            if not error <= self._tolerance * scale:
                found[name] = f"off by {error / scale:.2g} of its size" if scale else "not finite"
        return found


def require_graph(output: Tensor, model: nn.Module, task: Task) -> None:
    """Refuse an output from which no gradient flows."""
    if not output.requires_grad:
        raise UnsupportedModelError(
            f"the output of {type(task).__name__} does not depend on any parameter of {type(model).__name__} that is "
            "attributed to, as far as autograd can see. Is something detached, or under torch.no_grad()?"
        )


def _norm(tensors: list[Tensor]) -> float:
    """Of all of them as one vector."""
    return float(torch.stack([tensor.norm() for tensor in tensors]).norm())


def _tolerance(dtype: torch.dtype) -> float:
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return 0.1
    return {torch.float64: 1e-8, torch.float32: 1e-3}.get(dtype, 0.1)
