"""The parameter layout, and the blocks of per-sample gradients that extractors pass to projectors.

Shapes: B samples, T positions (tokens, pixels), p parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import Self

from trak_lightning.errors import UnsupportedModelError
from trak_lightning.model.parameters import how_to_unfreeze, select
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

    @property
    def layer(self) -> str:
        """The name of the module that owns the parameter."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class ParameterLayout(Sequence[ParameterSlot]):
    """The parameters attributed to, in the order of ``model.named_parameters()``.

    Gradients are with respect to these and no others; p is the sum of their sizes. Two models with equal layouts give
    features that can be compared.
    """

    slots: tuple[ParameterSlot, ...]

    @classmethod
    def of(cls, model: nn.Module, parameters: Sequence[str] | None = None) -> "ParameterLayout":
        """The layout of the parameters of `model` that require a gradient and that the patterns in `parameters` select
        (see `trak_lightning.model.parameters`), or of all that require one; tied parameters count once.

        Raises:
            UnsupportedModelError: no parameter requires a gradient.
            SettingsError: a pattern matches nothing.
        """
        slots, offset = [], 0
        for name, parameter in select(model, parameters).items():
            if parameter.is_complex():
                raise UnsupportedModelError(
                    f"parameter {name} of {type(model).__name__} is complex ({parameter.dtype}), and attribution is with respect "
                    f"to real parameters. Leave it out: parameters=['!{name}']. Or hold its real and imaginary part as one real "
                    "parameter and use torch.view_as_complex(parameter) in forward."
                )
            slots.append(ParameterSlot(name, tuple(parameter.shape), offset))
            offset += parameter.numel()
        if not slots:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no parameter with requires_grad=True, so there is no gradient to attribute "
                f"to. {how_to_unfreeze(model)}"
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


_CHUNK = {"cpu": 2**21, "cuda": 2**25}
"""How many entries of per-sample gradients to form at a time: few enough for a CPU's caches, enough to keep a GPU busy."""


def samples_at_a_time(entries: int, device: torch.device, share: int = 1) -> int:
    """How many samples to process together if each has this many `entries`; `share` divides the limit."""
    count = max(1, _CHUNK.get(device.type, 2**25) // (share * entries))
    return count + count % 2  # even, so that two threads can share the work


@dataclass(frozen=True)
class GradientBlock(ABC):
    """Per-sample gradients of one parameter, dense or as factors. The first dimension of every tensor is the number of samples
    in the block: B, or fewer if `samples` is a part of the batch."""

    name: str
    samples: slice = field(default_factory=lambda: slice(None), kw_only=True)
    """The samples of the batch that the block holds: all, unless an extractor computes them one at a time."""
    share: ClassVar[int] = 1
    """How many tensors of the size of the dense gradients exist while they are formed."""

    def __len__(self) -> int:
        """The number of samples in the block.

        Raises:
            UnsupportedModelError: its tensors have different lengths.
        """
        lengths = {value.shape[0] for value in vars(self).values() if isinstance(value, Tensor)}
        if len(lengths) != 1:
            raise UnsupportedModelError(f"a gradient block of {self.name} has tensors of {sorted(lengths)} samples")
        return lengths.pop()

    def require(self, slot: "ParameterSlot", size: int) -> None:
        """Refuse a block that does not fit its parameter and a batch of `size` samples.

        Raises:
            UnsupportedModelError: it does not have one gradient per sample, or gradients of another size.
        """
        expected = len(range(size)[self.samples])
        if len(self) != expected:
            raise UnsupportedModelError(
                f"the gradients of parameter {self.name} are those of {len(self)} samples, where the batch has {expected}"
            )
        if self.numel not in (None, slot.numel):
            raise UnsupportedModelError(
                f"the gradient of parameter {self.name} has {self.numel} entries per sample, and the parameter has {slot.numel}"
            )

    @property
    def numel(self) -> int | None:
        """The number of entries of one sample's gradient; None if it is not known before the gradient is formed."""
        return None

    @abstractmethod
    def dense(self) -> Tensor:
        """Form the dense gradients: (B, *parameter.shape)."""

    def weighted_sum(self, weights: Tensor, numel: int) -> Tensor:
        """``Σ_b weights[b] · grad[b]`` for weights (B,), with `numel` entries, the size of the parameter."""
        total: Tensor | None = None
        for samples, part in self.chunks(numel):
            grad = part.dense()
            grad = grad.reshape(len(grad), -1)
            added = weights[samples].to(grad) @ grad
            total = added if total is None else total.add_(added)
        assert total is not None
        return total

    def take(self, samples: slice) -> Self:
        """Slice the block by samples."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        taken: dict[str, Any] = {name: value[samples] for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **taken)

    def chunks(self, numel: int) -> Iterator[tuple[slice, Self]]:
        """Split the block by samples; yield each slice and its part. A part has at least one sample, and as many as fit into a
        few MB of dense gradients. `numel` is the size of the parameter."""
        tensor = next(value for value in vars(self).values() if isinstance(value, Tensor))
        size, step = len(tensor), samples_at_a_time(numel, tensor.device, self.share)
        if size <= step:
            yield slice(0, size), self
            return
        for start in range(0, size, step):
            samples = slice(start, min(start + step, size))
            yield samples, self.take(samples)


@dataclass(frozen=True)
class DenseBlock(GradientBlock):
    """Per-sample gradients of any parameter: ``grad`` is (B, *parameter.shape)."""

    grad: Tensor

    @property
    def numel(self) -> int:
        return self.grad.shape[1:].numel()

    def dense(self) -> Tensor:
        return self.grad

    def chunks(self, numel: int) -> Iterator[tuple[slice, Self]]:
        yield slice(None), self


@dataclass(frozen=True)
class OuterProductBlock(GradientBlock):
    """Per-sample gradients of the matrix (d_left, d_right) of a linear map, as factors.

    ``grad[b] = Σ_t left[b, t] ⊗ right[b, t]`` with ``left`` (B, T, d_left) and ``right`` (B, T, d_right): for
    ``nn.Linear``, the gradient of the output and the input. A projector may use the factors without ever forming the
    (B, d_left, d_right) product.
    """

    left: Tensor
    right: Tensor

    @property
    def numel(self) -> int:
        return self.left.shape[-1] * self.right.shape[-1]

    def dense(self) -> Tensor:
        return torch.bmm(self.left.transpose(1, 2), self.right)

    def weighted_sum(self, weights: Tensor, numel: int) -> Tensor:
        left = self.left * weights.to(self.left)[:, None, None]
        return left.flatten(0, 1).T @ self.right.flatten(0, 1)


@dataclass(frozen=True)
class ConvolutionBlock(GradientBlock):
    """Per-sample gradients of a convolution's weight (d_left, d_right / groups, *kernel), as factors.

    ``grad = combine(left, right)`` with ``left`` (B, d_left, *positions) and ``right`` (B, d_right, *positions), where
    `combine` is bilinear and acts sample by sample. With one group it pairs every channel of `left` with every channel
    of `right`, for any number of channels, so a projector may reduce the channels first. It may have a method ``summed`` that
    adds up the samples.
    """

    left: Tensor
    right: Tensor
    combine: Callable[[Tensor, Tensor], Tensor]
    groups: int = 1
    share: ClassVar[int] = 2

    def dense(self) -> Tensor:
        return self.combine(self.left, self.right)

    def weighted_sum(self, weights: Tensor, numel: int) -> Tensor:
        summed = getattr(self.combine, "summed", None)
        if summed is None:
            return super().weighted_sum(weights, numel)
        total: Tensor = summed(self.left * weights.to(self.left).view(-1, *[1] * (self.left.ndim - 1)), self.right)
        return total


@dataclass(frozen=True)
class RowSparseBlock(GradientBlock):
    """Per-sample gradients of an embedding table (num_rows, d): ``grad[b, rows[b, t]] += row_grad[b, t]``.

    ``rows`` is (B, T), ``row_grad`` (B, T, d); the same row may occur several times in a sample.
    """

    rows: Tensor
    row_grad: Tensor
    num_rows: int

    @property
    def numel(self) -> int:
        return self.num_rows * self.row_grad.shape[-1]

    def dense(self) -> Tensor:
        B, T, d = self.row_grad.shape
        grad = self.row_grad.new_zeros(B, self.num_rows, d)
        return grad.scatter_add_(1, self.rows.unsqueeze(-1).expand(B, T, d), self.row_grad)

    def weighted_sum(self, weights: Tensor, numel: int) -> Tensor:
        grad = self.row_grad * weights.to(self.row_grad)[:, None, None]
        total = grad.new_zeros(self.num_rows, grad.shape[-1])
        return total.index_add_(0, self.rows.flatten(), grad.flatten(0, 1))


Sink: TypeAlias = Callable[[GradientBlock], None]
"""The function that receives blocks from an extractor. A parameter may have several blocks (a module called twice, tied
weights); their sum is its gradient, and since projections are linear, a sink may add up their projections. If `extract`
raises, discard all blocks of that batch. A sink that has a method ``restart()`` is told so when the blocks so far are to be
discarded and others follow; one that has a method ``halves(outputs)`` is told the outputs (B,) that the samples have in two halves
of the batch, drawn at random and fetched anew, if the extractor has computed them without autocast."""


def restart_of(sink: Sink) -> Callable[[], None] | None:
    """The method of a sink that discards what it has received; None if it has none."""
    found: Callable[[], None] | None = getattr(sink, "restart", None)
    return found


def halves_of(sink: Sink | None) -> Callable[[Tensor], None] | None:
    """The method of a sink that takes the outputs of two halves of the batch; None if it has none."""
    found: Callable[[Tensor], None] | None = getattr(sink, "halves", None)
    return found
