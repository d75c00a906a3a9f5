"""Any module: re-run it alone from what it was given, and pull the gradients of its outputs back to its parameters."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp
from torch.utils._pytree import tree_flatten, tree_unflatten

from trak_lightning.extractors.rules.registry import Names
from trak_lightning.extractors.samples import is_batched, over_samples
from trak_lightning.gradients import DenseBlock, GradientBlock


@dataclass(frozen=True)
class RecordedCall:
    """One call of a module in the forward pass: arguments, and the gradients of its output tensors by position in the
    flattened output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output_grads: dict[int, Tensor]


def rerun(module: nn.Module, names: Names, call: RecordedCall, size: int) -> Iterator[GradientBlock]:
    """Exact per-sample gradients of the module's own parameters; under vmap where that can be done, else sample by
    sample. `size` is B."""
    leaves, structure = tree_flatten((call.args, call.kwargs))
    batched = [position for position, leaf in enumerate(leaves) if is_batched(leaf, size)]
    positions = sorted(call.output_grads)
    parameters = {name: module.get_parameter(name).detach() for name in names}

    def pull_back(sample: tuple[Tensor, ...], output_grads: tuple[Tensor, ...]) -> dict[str, Tensor]:
        one = list(leaves)
        for position, leaf in zip(batched, sample, strict=True):
            one[position] = leaf.unsqueeze(0)
        args, kwargs = tree_unflatten(one, structure)

        def forward(own: dict[str, Tensor]) -> tuple[Tensor, ...]:
            outputs = tree_flatten(functional_call(module, own, args, kwargs, tie_weights=False))[0]
            return tuple(outputs[position] for position in positions)

        pull = vjp(forward, parameters)[1]
        gradients: dict[str, Tensor] = pull(tuple(grad.unsqueeze(0) for grad in output_grads))[0]
        return gradients

    samples = tuple(leaves[position].detach() for position in batched)
    grads = tuple(call.output_grads[position] for position in positions)
    try:
        stacked = over_samples(pull_back, samples, grads)
    except (RuntimeError, ValueError, NotImplementedError):
        # Control flow on values, operators without a batching rule: what vmap cannot do, a loop can.
        each = [pull_back(tuple(leaf[b] for leaf in samples), tuple(grad[b] for grad in grads)) for b in range(size)]
        stacked = {name: torch.stack([gradients[name] for gradients in each]) for name in parameters}
    for name, grad in stacked.items():
        yield DenseBlock(names[name], grad)
