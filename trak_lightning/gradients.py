"""The currency of the house: which parameters there are, and the per-sample gradients that flow from extractors to
projectors, block by block.

Shapes: B samples, T positions (tokens, pixels), p parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor, nn

from trak_lightning.errors import UnsupportedModelError
from trak_lightning.seeds import fingerprint


@dataclass(frozen=True)
class ParameterSlot:
    """The place of one parameter in the flattened gradient: entries ``offset … offset + numel``."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @cached_property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class ParameterLayout(Sequence[ParameterSlot]):
    """The parameters attributed to, in the order of ``model.named_parameters()``.

    Gradients are with respect to these and no others; p is the sum of their sizes. Two models with equal layouts give
    features that can be compared.
    """

    slots: tuple[ParameterSlot, ...]

    @classmethod
    def of(cls, model: nn.Module) -> "ParameterLayout":
        """The layout of all parameters of `model` that require a gradient; tied parameters count once.

        Raises:
            UnsupportedModelError: no parameter requires a gradient.
        """
        slots, offset = [], 0
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                slots.append(ParameterSlot(name, tuple(parameter.shape), offset))
                offset += parameter.numel()
        if not slots:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no parameter with requires_grad=True, so there is no gradient to attribute "
                "to. Unfreeze the parameters that were trained: model.requires_grad_(True)."
            )
        return cls(tuple(slots))

    @cached_property
    def numel(self) -> int:
        """p, the length of the flattened gradient."""
        return sum(slot.numel for slot in self.slots)

    @cached_property
    def by_name(self) -> dict[str, ParameterSlot]:
        return {slot.name: slot for slot in self.slots}

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint([[slot.name, list(slot.shape)] for slot in self.slots])

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.slots[index]

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[ParameterSlot]:
        return iter(self.slots)


@dataclass(frozen=True)
class DenseBlock:
    """Per-sample gradients of any parameter: ``grad`` is (B, *parameter.shape)."""

    name: str
    grad: Tensor

    def dense(self) -> "DenseBlock":
        return self


@dataclass(frozen=True)
class OuterProductBlock:
    """Per-sample gradients of a linear map's weight (d_out, d_in), as factors.

    ``grad[b] = Σ_t output_grad[b, t] ⊗ input[b, t]`` with ``output_grad`` (B, T, d_out) and ``input`` (B, T, d_in). A
    projector may use the factors without ever forming the (B, d_out, d_in) product.
    """

    name: str
    output_grad: Tensor
    input: Tensor

    def dense(self) -> DenseBlock:
        return DenseBlock(self.name, torch.einsum("bto,bti->boi", self.output_grad, self.input))


@dataclass(frozen=True)
class RowSparseBlock:
    """Per-sample gradients of an embedding table (num_rows, d): ``grad[b, rows[b, t]] += row_grad[b, t]``.

    ``rows`` is (B, T), ``row_grad`` (B, T, d); the same row may occur several times in a sample.
    """

    name: str
    rows: Tensor
    row_grad: Tensor
    num_rows: int

    def dense(self) -> DenseBlock:
        B, T, d = self.row_grad.shape
        grad = self.row_grad.new_zeros(B, self.num_rows, d)
        grad.scatter_add_(1, self.rows.unsqueeze(-1).expand(B, T, d), self.row_grad)
        return DenseBlock(self.name, grad)


GradientBlock: TypeAlias = DenseBlock | OuterProductBlock | RowSparseBlock

Sink: TypeAlias = Callable[[GradientBlock], None]
"""Where an extractor pushes its blocks. A parameter may arrive in several blocks (a module called twice, tied
weights): their sum is its gradient, and since projections are linear, a sink adds up what it makes of each."""
