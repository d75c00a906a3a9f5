"""Audit an extractor: compare a weighted sum of its per-sample gradients with the gradient that autograd computes."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import DataError, UnsupportedModelError, docs_page
from trak_lightning.extractors.state import gradients, parameters_of, requiring
from trak_lightning.gradients import GradientBlock, ParameterLayout
from trak_lightning.model.autocast import without_autocast
from trak_lightning.tasks.base import Task, batch_of

_ROUNDED = 1e-11
"""A gradient with a larger relative error was computed in less than float64 somewhere."""

_MEASURED = 4
"""Of how many samples of a block the size is measured."""

_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Relative errors of correct gradients by the precision of the model; 0.1 for 16 bits."""


Watch: TypeAlias = Callable[[Any], AbstractContextManager[None]]
"""``watch(data)``: a context in which the forward pass on this data is made."""


def audit_coefficients(size: int) -> Tensor:
    """Weights (B,), different for each sample, so that a weighted sum reveals gradients assigned to the wrong sample; most
    different for neighbors, which are most likely to be mixed up."""
    return 0.5 + torch.arange(size, dtype=torch.float64) * 0.6180339887498949 % 1.0


def only(position: int, size: int) -> Tensor:
    """Weights (B,) that select the gradient of one sample."""
    return torch.eye(size, dtype=torch.float64)[position]


@dataclass(frozen=True)
class Reference:
    """The gradient of Σ_b w_b f_b by parameter, None where the output does not depend on it, and the outputs f (B,).

    `precision` is the lowest floating-point precision that autograd seems to have used.
    """

    grads: dict[str, Tensor | None]
    precision: torch.dtype
    output: Tensor

    @property
    def finite(self) -> bool:
        return all(grad is None or bool(grad.isfinite().all()) for grad in self.grads.values())


def reference(
    model: nn.Module,
    task: Task,
    batch: SampleBatch,
    layout: ParameterLayout,
    weights: Tensor | None = None,
    watch: Watch = nullcontext,
) -> Reference:
    """Differentiate the weighted sum of the outputs of a batch with autograd, without autocast; `audit_coefficients` by default.

    A float64 model is differentiated twice to measure its precision, since norms, rotary embeddings and losses of many such
    models still compute in float32.
    """
    weights = audit_coefficients(batch.size) if weights is None else weights
    grads, output = _gradients(model, task, batch, layout, weights, watch)
    known = [grad for grad in grads.values() if grad is not None]
    if any(grad.dtype != torch.float64 for grad in known):
        precision = max((grad.dtype for grad in known), key=lambda dtype: torch.finfo(dtype).eps)
        return Reference(grads, precision, output)
    # A backward pass is linear except for rounding. A factor of 3, since powers of two do not change the rounding.
    again, _ = _gradients(model, task, batch, layout, 3.0 * weights)
    thirds = [grad / 3 for grad in again.values() if grad is not None]
    if len(thirds) != len(known):
        return Reference(grads, torch.float32, output)
    error = _norm([one - other for one, other in zip(known, thirds, strict=True)])
    return Reference(grads, torch.float64 if error <= _ROUNDED * _norm(known) else torch.float32, output)


def halves(size: int, seed: int) -> list[list[int]]:
    """Divide the positions of a batch at random in two halves, each in order, since the collate function may sort."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    return [sorted(order[::2]), sorted(order[1::2])]


def added(parts: Sequence[Reference]) -> Reference:
    """The reference of several batches together: their gradients are added up, in place."""
    first, *rest = parts
    grads = first.grads
    for part in rest:
        for name, grad in part.grads.items():
            before = grads[name]
            grads[name] = grad if before is None else before if grad is None else before.add_(grad)
    precision = max((part.precision for part in parts), key=lambda dtype: torch.finfo(dtype).eps)
    return Reference(grads, precision, torch.cat([part.output for part in parts]))


def _gradients(
    model: nn.Module,
    task: Task,
    batch: SampleBatch,
    layout: ParameterLayout,
    weights: Tensor,
    watch: Watch = nullcontext,
) -> tuple[dict[str, Tensor | None], Tensor]:
    names, data = [slot.name for slot in layout], batch.data
    with requiring(model, names), without_autocast(), batch_of(batch.size), torch.enable_grad():
        with watch(data):
            output = task.output(model, data)
        output = as_outputs(output, batch.size, task)
        require_graph(output, model, task)
        total = (output * weights.to(output)).sum()
        found = gradients(total, list(parameters_of(model, names).values()), model)
    return dict(zip(names, found, strict=True)), output.detach()


class Audit:
    """A sink that subtracts the weighted sum of the blocks from a reference with the same weights, in place: it needs no
    memory of size p in addition to the reference, which it overwrites.

    With `measure`, errors are measured against Σ_b ‖w_b g_b‖. Without, they are measured against the norm of the reference, which
    takes no time and is smaller, and a parameter that the output depends on must have a block even if its gradient is zero. So what is
    wrong without `measure` may be right.
    """

    def __init__(
        self,
        layout: ParameterLayout,
        expected: Reference,
        weights: Tensor,
        slack: float = 1.0,
        *,
        measure: bool = True,
    ) -> None:
        self._layout = layout
        self._weights = weights
        self._norms = {name: 0.0 if grad is None else float(grad.norm()) for name, grad in expected.grads.items()}
        self._size = sum(norm**2 for norm in self._norms.values()) ** 0.5
        self.tolerance = min(slack * _TOLERANCES.get(expected.precision, 0.1), 0.3)
        self._left = dict(expected.grads)
        self._sizes: dict[str, float] = {}
        self._measure = measure

    @property
    def begun(self) -> bool:
        """Whether the reference was overwritten."""
        return bool(self._sizes)

    def __call__(self, block: GradientBlock) -> None:
        slot = self._layout.by_name[block.name]
        block.require(slot, len(self._weights))
        weights = self._weights[block.samples]
        chosen = weights.nonzero()[:, 0]
        if not len(chosen):
            return
        samples = slice(int(chosen[0]), int(chosen[-1]) + 1)
        part, weights = block.take(samples), weights[samples]
        # One sample as it is projected, and many with little memory.
        weighted = part.dense()[0] * float(weights) if len(part) == 1 else part.weighted_sum(weights, slot.numel)
        weighted = weighted.detach()
        size = 0.0 if not self._measure else float(weighted.norm()) if len(part) == 1 else _size(part, weights)
        self._sizes[block.name] = self._sizes.get(block.name, 0.0) + size
        left = self._left[block.name]
        if left is None:
            self._left[block.name] = weighted.neg_()
        else:
            left.sub_(weighted.view_as(left))

    def wrong(self) -> dict[str, str]:
        """The parameters that differ from the reference, and how."""
        found: dict[str, str] = {}
        for name, left in self._left.items():
            if name not in self._sizes:
                if left is not None and (not self._measure or left.any()):
                    found[name] = "not seen"
                continue
            if left is None:
                continue
            error = float(left.norm())
            # A gradient that is zero except for rounding, such as that of the bias of attention keys, is noise in both.
            scale = max(self._sizes[name], self._norms[name], 1e-3 * self._size)
            if not error <= self.tolerance * scale:
                found[name] = f"off by {error / scale:.2g} of its size" if scale else "not finite"
        return found


def _size(block: GradientBlock, weights: Tensor) -> float:
    """About Σ_b ‖w_b g_b‖, from at most `_MEASURED` samples."""
    step = -(-len(block) // _MEASURED)
    norms = [
        float(weights[at]) * float(block.take(slice(at, at + 1)).dense().norm()) for at in range(0, len(block), step)
    ]
    return step * sum(norms)


def require_graph(output: Tensor, model: nn.Module, task: Task) -> None:
    """Refuse an output that does not depend on the attributed parameters.

    Raises:
        UnsupportedModelError: it does not.
    """
    if not output.requires_grad:
        raise UnsupportedModelError(
            f"the output of {type(task).__name__} does not depend on any parameter of {type(model).__name__} that is "
            "attributed to, according to autograd. Is something detached, or computed under torch.no_grad()?"
        )


def as_outputs(output: Tensor, size: int, task: Task) -> Tensor:
    """The outputs (B,) of a task; a single number is accepted for a batch of one.

    Raises:
        DataError: the outputs have another shape or type.
    """
    if isinstance(output, Tensor) and (output.shape == (size,) or (size == 1 and output.numel() == 1)):
        return output.reshape(size)
    found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    flat = isinstance(output, Tensor) and output.ndim == 1
    fewer, more = flat and 0 < len(output) < size, flat and len(output) > size
    raise DataError(
        f"the output of {type(task).__name__} must have shape ({size},), one number per sample; got {found}. "
        + (
            "Is that another dimension, such as time or nodes? Keep the one that holds the samples. Does the collate function leave out broken "
            "samples? Remove them from the dataset: torch.utils.data.Subset(dataset, kept)."
            if fewer
            else "Does a sample have several rows, such as nodes, time steps or parts? Reduce them to one number per sample, or make each a sample of the "
            f"dataset; for the nodes of one graph, see {docs_page('recipes', 'The nodes of one graph')}."
            if more
            else "Do not average over the batch: reduction='none', or no .mean()."
        )
    )


def _norm(tensors: list[Tensor]) -> float:
    """The norm of all tensors as one vector."""
    return float(torch.stack([tensor.norm() for tensor in tensors]).norm()) if tensors else 0.0
