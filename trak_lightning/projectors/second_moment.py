"""Gradient entries are divided by a power of their size before they are projected, as Adam divides the steps of training."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trak_lightning import registry
from trak_lightning.errors import SettingsError, require_integer
from trak_lightning.gradients import (
    ConvolutionBlock,
    GradientBlock,
    OuterProductBlock,
    ParameterLayout,
    ParameterSlot,
    RowSparseBlock,
    Sink,
)
from trak_lightning.projectors.base import FACTORS, BlockMap, BlockMaps, ProjectionSpec, Projector

DAMPING = 0.1
"""What is added to second moments, relative to their mean: entries that few samples touch are not blown up."""


class SecondMoment(Projector):
    """``P·S`` with another projector P and a diagonal S that scales every gradient entry by ``v^(−1/4)``.

    v is the mean square of the entry over `fit_samples` training samples under the same checkpoint. Inner products of
    features then weight entry j by ``1/√v_j``, which is the step size that Adam gives it. Otherwise a few entries with
    large gradients (position embeddings, frequent tokens) dominate every inner product, and λ is too large for all others.
    The scores as λ → 0 do not depend on S unless p > n.

    For a matrix, ``v ≈ r cᵀ / mean(r)`` with its row and column means (Shazeer and Stern 2018, "Adafactor"), so that factors
    of gradients are scaled and the gradients need not be formed. A convolution has a row for each output channel and a column for each
    input channel.

    Memory: that of P, and 4·(rows + columns) bytes per matrix.

    Args:
        projector: P, by name, or as a mapping with a ``name`` and options.
        fit_samples: number of training samples that v is the mean over, spread evenly over the training set.
    """

    def __init__(self, projector: str | dict[str, Any] | Projector = "sparse_jl", fit_samples: int = 256) -> None:
        self._projector: Projector = registry.create("projectors", projector)
        if self._projector.fit_samples:
            raise SettingsError(
                f"{type(self._projector).__name__} is fitted to gradients itself, so second_moment cannot contain it"
            )
        self.fit_samples = require_integer("fit_samples", fit_samples, 1, "a number of samples")

    @property
    def state(self) -> dict[str, Any]:
        return {**super().state, "projector": self._projector.state}

    def columns(self, layout: ParameterLayout) -> dict[str, slice]:
        return self._projector.columns(layout)

    def memory_bytes(self, layout: ParameterLayout) -> int | None:
        held = self._projector.memory_bytes(layout)
        return None if held is None else held + sum(4 * sum(slot.shape[:2]) for slot in layout)

    def fit(self, layout: ParameterLayout, gradients: Callable[[Sink], None], *, seed: int) -> dict[str, Tensor]:
        moments = {slot.name: _Moments(slot) for slot in layout}

        def sink(block: GradientBlock) -> None:
            moments[block.name].add(block)

        gradients(sink)
        mean = sum(float(each.rows.sum()) * each.width for each in moments.values()) / layout.numel
        return {
            f"{name}:{side}": scale.cpu()
            for name, each in moments.items()
            for side, scale in zip(("left", "right"), each.scales(mean), strict=False)
        }

    def bind(self, spec: ProjectionSpec) -> BlockMaps:
        if any(f"{slot.name}:left" not in spec.fitted for slot in spec.layout):
            raise SettingsError(
                "second_moment must be fitted before it can project. trak featurize and TRAK.featurize do that; elsewhere, pass "
                "what its `fit` returns as Projection(…, fitted=…)."
            )
        bound = self._projector.bind(replace(spec, fitted={}))

        def block(slot: ParameterSlot) -> BlockMap:
            sides = (spec.fitted.get(f"{slot.name}:{side}") for side in ("left", "right"))
            left, right = (None if side is None else side.to(spec.device) for side in sides)
            assert left is not None
            return _Scaled(bound(slot), slot, left, right)

        return block


class _Moments:
    """Sums of squares over the rows and over the columns of one parameter's gradients; of a vector, over samples only.

    Blocks of one parameter, such as those of both ends of tied embeddings, count as independent.
    """

    def __init__(self, slot: ParameterSlot) -> None:
        self._shape = _three_sides(slot)
        self.width = slot.numel // self._shape[0]
        """Entries of a row."""
        self.rows = torch.zeros(self._shape[0])
        """Mean square of the entries of each row, times the number of samples."""
        self._columns = torch.zeros(self._shape[1])
        self._vector = len(slot.shape) < 2

    def add(self, block: GradientBlock) -> None:
        self.rows, self._columns = (each.to(_device(block)) for each in (self.rows, self._columns))
        if isinstance(block, OuterProductBlock) and 2 * block.left.shape[1] < min(self._shape[:2]):
            self.rows += _row_squares(block.left, block.right) / self._shape[1]
            self._columns += _row_squares(block.right, block.left) / self._shape[0]
            return
        for _, part in block.chunks(self.width * self._shape[0]):
            squares = part.dense().reshape(-1, *self._shape).float().square().sum(0)
            self.rows += squares.mean((1, 2))
            self._columns += squares.mean((0, 2))

    def scales(self, mean: float) -> tuple[Tensor, ...]:
        """Return the factors of rows and columns, given the mean of v over all parameters."""
        rows = _power(self.rows, mean)
        return (rows,) if self._vector else (rows, _power(self._columns, float(self._columns.mean())))


def _row_squares(left: Tensor, right: Tensor) -> Tensor:
    """Return the sum of squares of each row of ``Σ_t left[b, t] ⊗ right[b, t]``, summed over b, from inner products over t."""
    left, right = left.float(), right.float()
    return ((right @ right.mT) @ left * left).sum((0, 1))


def _power(moments: Tensor, mean: float) -> Tensor:
    """Return ``(v/mean + DAMPING)^(−1/4)``; 1 if all moments are 0."""
    return torch.ones_like(moments) if mean == 0 else (moments / mean + DAMPING).pow(-0.25)


def _three_sides(slot: ParameterSlot) -> tuple[int, int, int]:
    """Rows, columns, and entries that share both, such as those of a kernel."""
    rows = slot.shape[0] if slot.shape else 1
    columns = slot.shape[1] if len(slot.shape) > 1 else 1
    return rows, columns, slot.numel // max(1, rows * columns)


def _device(block: GradientBlock) -> torch.device:
    return next(value.device for value in vars(block).values() if isinstance(value, Tensor))


class _Scaled:
    """Scales a parameter's gradient, or its factors, before another block maps it. It accepts the factors that the other does.

    Scales are in float32, so products with them are in float32 or wider, whatever the dtype of the gradient.
    """

    def __init__(self, then: BlockMap, slot: ParameterSlot, left: Tensor, right: Tensor | None) -> None:
        self._then, self._shape, self._left = then, _three_sides(slot), left
        self._right = torch.ones(1, device=left.device) if right is None else right
        self.whole_batches = getattr(then, "whole_batches", False)
        scaled: dict[str, Callable[[Any], Any]] = {
            "outer": self._outer,
            "convolution": self._convolution,
            "row_sparse": self._row_sparse,
        }
        for name in FACTORS.values():
            if hasattr(then, name):
                setattr(self, name, partial(self._factors, scaled[name], getattr(then, name)))

    def __call__(self, grad: Tensor, out: Tensor) -> None:
        left = self._left.to(torch.promote_types(grad.dtype, torch.float32))
        scaled = grad.view(-1, *self._shape) * (left[:, None] * self._right).unsqueeze(-1)
        self._then(scaled.reshape(len(grad), -1), out)

    @staticmethod
    def _factors(scaled: Callable[[Any], Any], then: Callable[[Any, Tensor], None], block: Any, out: Tensor) -> None:
        then(scaled(block), out)

    def _outer(self, block: OuterProductBlock) -> OuterProductBlock:
        return replace(block, left=block.left * self._left, right=block.right * self._right)

    def _convolution(self, block: ConvolutionBlock) -> ConvolutionBlock:
        left, right = self._left, self._right.repeat(block.groups)
        positions = (1,) * (block.left.ndim - 2)
        return replace(
            block,
            left=block.left * left.view(-1, *positions),
            right=block.right * right.view(-1, *positions),
        )

    def _row_sparse(self, block: RowSparseBlock) -> RowSparseBlock:
        grad = block.row_grad
        return replace(block, row_grad=grad * self._left[block.rows].unsqueeze(-1) * self._right)
