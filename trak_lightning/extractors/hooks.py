"""One forward and one backward pass for the whole batch; per-sample gradients are made layer by layer, as the backward
pass arrives there."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from trak_lightning.errors import UnsupportedModelError
from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.extractors.samples import batch_size
from trak_lightning.extractors.tape import Tape
from trak_lightning.gradients import GradientBlock, ParameterLayout, Sink
from trak_lightning.tasks.base import Task


class Hooks(GradientExtractor):
    """Exact per-sample gradients at about the cost of a training step.

    Forward hooks record the input of every layer that owns attributed parameters; the backward pass computes gradients of
    layer outputs only, and at each layer a rule turns input and output gradient into per-sample parameter gradients, which
    go to the sink and are freed. Layers without a rule, and bare parameters, are re-run alone under vmap.

    On the first batch of a model the sum of all blocks is compared with the ordinary gradient, parameter by parameter, so
    that a parameter that is used in a way hooks cannot see is refused by name and never dropped.

    Memory: the activations, as in training, and the block of one layer.
    """

    def __init__(self) -> None:
        self._verified: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()

    def extract(self, model: nn.Module, task: Task, batch: Any, layout: ParameterLayout, sink: Sink) -> Tensor:
        size = batch_size(batch)
        if self._verified.get(model) == layout.fingerprint:
            return self._extract(model, task, batch, layout, sink, size)
        audit = _Audit(layout, sink)
        output = self._extract(model, task, batch, layout, audit, size)
        audit.compare(model, task, batch)
        self._verified[model] = layout.fingerprint
        return output

    def _extract(
        self, model: nn.Module, task: Task, batch: Any, layout: ParameterLayout, sink: Sink, size: int
    ) -> Tensor:
        frozen = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        # The fast path of transformer layers computes without calling the modules inside.
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            # Without parameter gradients, autograd neither computes nor stores anything for them.
            model.requires_grad_(False)
            with Tape(model, layout, sink, size) as tape:
                output = task.output(model, batch)
                _require_graph(output, model, task)
                tape.backward(output)
            return output.detach()
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(frozen[name])


class _Audit:
    """A sink that also adds up what passes through, for comparison with the ordinary gradient."""

    def __init__(self, layout: ParameterLayout, sink: Sink) -> None:
        self._layout = layout
        self._sink = sink
        self._totals: dict[str, Tensor] = {}
        self._sizes: dict[str, float] = {}

    def __call__(self, block: GradientBlock) -> None:
        for _, part in block.chunks(self._layout.by_name[block.name].numel):
            grad = part.dense()
            total = self._totals.get(block.name)
            self._totals[block.name] = grad.sum(0) if total is None else total.add_(grad.sum(0))
            size = float(grad.flatten(1).norm(dim=1).sum())
            self._sizes[block.name] = self._sizes.get(block.name, 0.0) + size
            del grad  # before the next part is made
        self._sink(block)

    def compare(self, model: nn.Module, task: Task, batch: Any) -> None:
        """Compare Σ_b of the blocks with the gradient of Σ_b f_b; errors are measured against Σ_b ‖g_b‖."""
        parameters = [model.get_parameter(slot.name) for slot in self._layout]
        states = [parameter.requires_grad for parameter in parameters]
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            output = task.output(model, batch)
            _require_graph(output, model, task)
            expected = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
        finally:
            for parameter, state in zip(parameters, states, strict=True):
                parameter.requires_grad_(state)
        total = float(torch.stack([grad.norm() for grad in expected if grad is not None]).norm())
        wrong = []
        for slot, grad in zip(self._layout, expected, strict=True):
            found = self._totals.get(slot.name)
            if found is None:
                if grad is not None and grad.any():
                    wrong.append(f"{slot.name} (not seen)")
                continue
            error = float((found if grad is None else found - grad).norm())
            # A gradient that is zero but for rounding, as of the bias of attention keys, is noise in both.
            scale = max(self._sizes[slot.name], 1e-3 * total)
            if error > _tolerance(found.dtype) * scale:
                wrong.append(f"{slot.name} (off by {error / scale:.0%})")
        if wrong:
            raise UnsupportedModelError(
                f"per-sample gradients of {len(wrong)} parameters of {type(model).__name__} cannot be had from hooks: "
                f"{', '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}. They are used outside the forward of the module that "
                "owns them, without a batch dimension, or where samples are mixed. Use extractor='functional' or 'iterative', or freeze them with "
                "requires_grad_(False)."
            )


def _require_graph(output: Tensor, model: nn.Module, task: Task) -> None:
    if not output.requires_grad:
        raise UnsupportedModelError(
            f"the output of {type(task).__name__} does not depend on any parameter of {type(model).__name__} that is "
            "attributed to, as far as autograd can see. Is something detached, or under torch.no_grad()?"
        )


def _tolerance(dtype: torch.dtype) -> float:
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return 0.1
    return {torch.float64: 1e-8, torch.float32: 1e-3}.get(dtype, 0.1)
