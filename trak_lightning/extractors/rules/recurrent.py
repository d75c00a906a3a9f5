"""Recurrent layers: recompute the recurrence step by step, with the outputs of the linear maps in every cell as leaves."""

from collections.abc import Iterator
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from trak_lightning.extractors.rules.registry import LayerCall, Names, call_rule_for
from trak_lightning.gradients import DenseBlock, GradientBlock, OuterProductBlock

_PARAMETERS = r"(weight|bias)_(ih|hh|hr)_l\d+(_reverse)?"


@call_rule_for(
    nn.RNN, nn.LSTM, nn.GRU, parameters=_PARAMETERS, when=lambda module: not (module.training and module.dropout)
)
def recurrent(module: nn.Module, names: Names, call: LayerCall) -> Iterator[GradientBlock]:
    """``∂f/∂W_ih = Σ_t ∂f/∂(W_ih x_t) ⊗ x_t`` and ``∂f/∂W_hh = Σ_t ∂f/∂(W_hh h_{t−1}) ⊗ h_{t−1}``; any number of layers,
    both directions, projections of an LSTM, packed sequences."""
    assert isinstance(module, nn.RNNBase)
    given = signature(module.forward).bind(*call.args, **call.kwargs).arguments
    input, state = given["input"], given.get("hx")
    packed = isinstance(input, PackedSequence)
    x, lengths = _padded(module, input)
    states = [] if state is None else list(state if isinstance(state, tuple) else (state,))
    with torch.enable_grad():
        unrolled = _Unrolled(module, lengths, states, len(x))
        output, finals = unrolled.run(x)
        # A packed output has four tensors, of which only the data have a gradient; states follow.
        grads = [grad for grad in call.output_grads if grad is not None]
        places = [place for place, grad in enumerate(call.output_grads) if grad is not None]
        skipped = len(call.output_grads) - len(finals)
        outputs = [output if place == 0 else finals[place - skipped] for place in places]
        if packed and 0 in places:
            grads[0] = _padded(module, input._replace(data=grads[0]))[0]
        elif places and places[0] == 0 and not module.batch_first:
            grads[0] = grads[0].transpose(0, 1)
        products = unrolled.products
        wanted = [grad.to(output.dtype) for grad, output in zip(grads, outputs, strict=True)]
        pulled = torch.autograd.grad(
            outputs, [product.leaf for product in products], wanted, allow_unused=True, materialize_grads=True
        )
    totals: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for product, grad in zip(products, pulled, strict=True):
        totals.setdefault(product.name, []).append((grad, product.input))
    for name, factors in totals.items():
        yield from _blocks(names, name, factors)


def _blocks(names: Names, name: str, factors: list[tuple[Tensor, Tensor]]) -> Iterator[GradientBlock]:
    dtype = torch.promote_types(factors[0][0].dtype, torch.float32)
    left = torch.cat([grad for grad, _ in factors], 1).to(dtype)  # (B, T, gates)
    if (weight := f"weight_{name}") in names:
        yield OuterProductBlock(names[weight], left, torch.cat([input for _, input in factors], 1).to(dtype))
    if (bias := f"bias_{name}") in names:
        yield DenseBlock(names[bias], left.sum(1))


class _Product:
    """A product with a weight: the leaf added to its value (B, T, d_out), and its input (B, T, d_in)."""

    def __init__(self, name: str, leaf: Tensor, input: Tensor) -> None:
        self.name, self.leaf, self.input = name, leaf, input


class _Unrolled:
    def __init__(self, module: nn.RNNBase, lengths: Tensor | None, states: list[Tensor], size: int) -> None:
        self._module = module
        self._lengths = lengths
        self._states = states
        self._size = size
        self.products: list[_Product] = []

    def run(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The outputs (B, T, directions · d) and the final states, each (layers · directions, B, d)."""
        finals: list[tuple[Tensor, ...]] = []
        for layer in range(self._module.num_layers):
            outputs = []
            for suffix in ("", "_reverse") if self._module.bidirectional else ("",):
                output, final = self._direction(x, f"l{layer}{suffix}", len(finals))
                outputs.append(output)
                finals.append(final)
            x = torch.cat(outputs, 2)
        return x, [torch.stack(parts) for parts in zip(*finals, strict=True)]

    def _direction(self, x: Tensor, name: str, position: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        gates = self._product(f"ih_{name}", x)
        state = self._initial(position, x)
        steps: list[Any] = [None] * x.shape[1]
        for t in reversed(range(x.shape[1])) if name.endswith("_reverse") else range(x.shape[1]):
            new = self._cell(name, gates[:, t], self._product(f"hh_{name}", state[0].unsqueeze(1))[:, 0], state)
            if self._lengths is not None:
                here = (t < self._lengths).unsqueeze(1)
                new = tuple(torch.where(here, after, before) for after, before in zip(new, state, strict=True))
            state = new
            steps[t] = state[0]
        return torch.stack(steps, 1), state

    def _product(self, name: str, input: Tensor) -> Tensor:
        """Multiply `input` by a weight and add a zero leaf, whose gradient is that of the product. The product still depends on
        `input`, so that gradients reach earlier cells through it."""
        weight = getattr(self._module, f"weight_{name}").detach()
        bias = getattr(self._module, f"bias_{name}", None)
        value = F.linear(input, weight, None if bias is None else bias.detach())
        leaf = torch.zeros_like(value, requires_grad=True)
        self.products.append(_Product(name, leaf, input.detach()))
        return value + leaf

    def _initial(self, position: int, x: Tensor) -> tuple[Tensor, ...]:
        module = self._module
        if self._states:
            return tuple(state.detach()[position] for state in self._states)
        width = getattr(module, "proj_size", 0) or module.hidden_size
        zero = x.new_zeros(self._size, width)
        return (zero, x.new_zeros(self._size, module.hidden_size)) if isinstance(module, nn.LSTM) else (zero,)

    def _cell(self, name: str, given: Tensor, kept: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        module = self._module
        if isinstance(module, nn.LSTM):
            enter, forget, candidate, leave = (given + kept).chunk(4, 1)
            memory = forget.sigmoid() * state[1] + enter.sigmoid() * candidate.tanh()
            hidden = leave.sigmoid() * memory.tanh()
            if module.proj_size:
                hidden = self._product(f"hr_{name}", hidden.unsqueeze(1))[:, 0]
            return hidden, memory
        if isinstance(module, nn.GRU):
            (reset, update, candidate), (reset_h, update_h, candidate_h) = given.chunk(3, 1), kept.chunk(3, 1)
            update = (update + update_h).sigmoid()
            candidate = (candidate + (reset + reset_h).sigmoid() * candidate_h).tanh()
            return ((1 - update) * candidate + update * state[0],)
        assert isinstance(module, nn.RNN)
        total = given + kept
        return (total.tanh() if module.nonlinearity == "tanh" else total.relu(),)


def _padded(module: nn.RNNBase, input: Tensor | PackedSequence) -> tuple[Tensor, Tensor | None]:
    """Batch first, (B, T, d), and the lengths of packed sequences."""
    if isinstance(input, PackedSequence):
        x, lengths = pad_packed_sequence(input, batch_first=True)
        return x.detach(), lengths.to(x.device)
    return (input if module.batch_first else input.transpose(0, 1)).detach(), None
