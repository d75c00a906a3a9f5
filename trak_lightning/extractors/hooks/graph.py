"""Inspect the autograd graph of an output without running it."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_ACCUMULATE = "torch::autograd::AccumulateGrad"


def walk(output: Tensor) -> tuple[Counter[str], set[int]]:
    """Count the operations that made `output`, by name, and collect the ids of the leaves that it depends on. Takes about two
    microseconds per operation; cannot see into reentrant checkpoints."""
    kinds: Counter[str] = Counter()
    leaves: set[int] = set()
    seen: set[Any] = {output.grad_fn}
    open_nodes: list[Any] = [output.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is None:
            continue
        name = node.name()
        kinds[name] += 1
        if name == _ACCUMULATE:
            leaves.add(id(node.variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                open_nodes.append(following)
    return kinds, leaves


class Ancestry:
    """Which parameters tensors depend on while a forward pass is made, as bits of a number. The graph is walked once."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._bits = {id(parameter): 1 << place for place, parameter in enumerate(parameters)}
        self._known: dict[Any, int] = {None: 0}

    def of(self, tensor: Tensor) -> int:
        """The bits of the parameters that require a gradient and that a tensor depends on; all if the graph does not show it."""
        if not tensor.requires_grad:  # reentrant checkpointing hides the graph
            return -1 if tensor.is_floating_point() and not torch.is_grad_enabled() else 0
        if tensor.grad_fn is None:
            return self._bits.get(id(tensor), 0)
        open_nodes: list[Any] = [tensor.grad_fn]
        while open_nodes:
            node = open_nodes[-1]
            if node in self._known:
                open_nodes.pop()
                continue
            before = [following for following, _ in node.next_functions]
            unknown = [following for following in before if following not in self._known]
            if unknown:
                open_nodes += unknown
                continue
            own = self._bits.get(id(node.variable), 0) if node.name() == _ACCUMULATE else 0
            for following in before:
                own |= self._known[following]
            self._known[node] = own
        return self._known[tensor.grad_fn]

    def among(self, parameters: Iterable[Tensor]) -> int:
        """The bits of these parameters."""
        return sum({self._bits[id(parameter)] for parameter in parameters})

    def forget(self) -> None:
        """Let the graph go."""
        self._known = {None: 0}
