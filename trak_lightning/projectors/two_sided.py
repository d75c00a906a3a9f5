"""Projections of weight matrices from both sides: A G Bᵀ for the gradient G of a matrix."""

from collections.abc import Callable
from math import prod
from typing import Literal

import torch
from torch import Tensor

from trak_lightning.errors import SettingsError, require_integer, require_option
from trak_lightning.gradients import (
    ConvolutionBlock,
    GradientBlock,
    OuterProductBlock,
    ParameterLayout,
    ParameterSlot,
    RowSparseBlock,
    Sink,
)
from trak_lightning.projectors.base import BlockMap, BlockMaps, ProjectionSpec, Projector
from trak_lightning.projectors.philox import random_signs
from trak_lightning.projectors.principal import PrincipalDirections
from trak_lightning.projectors.sparse_jl import SparseJLBlock
from trak_lightning.seeds import derive_seed


class LowRank(Projector):
    """``P vec(G) = vec(A G Bᵀ)`` for the gradient G (d_1, d_2) of every matrix, with A (r, d_1) and B (r, d_2).

    Each parameter has its own features, at most r² of them, and the features of all parameters are concatenated. A
    convolution (d_1, d_2, *kernel) counts as the matrix (d_1, d_2·|kernel|). A side of at most r is left as it is. A
    vector of more than r² entries is projected to r² by a sparse JL transform. Because ``G = Σ_t ∂y_t ⊗ x_t``, only output
    gradients and inputs are projected, and G is never formed. LoGRA: Choe et al. 2024, "What is your data worth to GPT?".
    For k dimensions in total, chain it with another projector: see `chain`.

    ``init="random"``: A and B hold random signs over √r; E⟨Pg, Ph⟩ = ⟨g, h⟩. ``init="pca"``: their rows are the leading
    eigenvectors of Σ G Gᵀ and Σ Gᵀ G over `fit_samples` training samples under the same checkpoint (the higher-order
    singular value decomposition). They do not depend on the extractor. What lies outside the leading directions is lost,
    so inner products are not preserved on average; no other choice of the same rank keeps much more of the gradients'
    norm.

    Memory: 4·r·(d_1 + d_2) bytes per matrix; while ``pca`` is being fitted, about five times as much.

    Args:
        rank: r, the largest side of a projected matrix.
        init: ``random`` or ``pca``.
        fit_samples: number of training samples that ``pca`` is fitted to, spread evenly over the training set.
    """

    def __init__(self, rank: int = 16, init: Literal["random", "pca"] = "random", fit_samples: int = 256) -> None:
        fitted = require_integer("fit_samples", fit_samples, 1, "a number of samples")
        self.rank = require_integer("rank", rank, 1, "a number of rows and columns")
        self.init = require_option("init", init, ("random", "pca"))
        self.fit_samples = fitted if init == "pca" else 0

    def columns(self, layout: ParameterLayout) -> dict[str, slice]:
        found, start = {}, 0
        for slot in layout:
            width = self._width(slot)
            found[slot.name] = slice(start, start + width)
            start += width
        return found

    def memory_bytes(self, layout: ParameterLayout) -> int:
        held = 0
        for slot in layout:
            if len(slot.shape) > 1:
                held += sum(4 * self.rank * side for side in _matrix_shape(slot) if side > self.rank)
            elif slot.numel > self.rank**2:
                held += SparseJLBlock.memory_bytes(slot.numel, self.rank**2)
        return held

    def bind(self, spec: ProjectionSpec) -> BlockMaps:
        expected = {f"{slot.name}:{side}" for slot, side, _ in self._reduced(spec.layout)}
        if self.init == "pca" and spec.fitted.keys() != expected:
            raise SettingsError(
                "lowrank with init='pca' must be fitted before it can project. trak featurize and TRAK.featurize do that; "
                "elsewhere, pass what its `fit` returns as Projection(…, fitted=…)."
            )

        def block(slot: ParameterSlot) -> BlockMap:
            seed = spec.seed_of(slot)
            if len(slot.shape) < 2:
                return _vector(slot.numel, self.rank**2, seed, spec.device)
            shape = _matrix_shape(slot)
            sides: list[Tensor | None] = []
            for name, size in zip(("left", "right"), shape, strict=True):
                if self.init == "pca" and size > self.rank:
                    sides.append(spec.fitted[f"{slot.name}:{name}"].to(spec.device))
                else:
                    sides.append(_signs(size, self.rank, derive_seed(seed, name), spec.device))
            return TwoSidedMap(shape, sides[0], sides[1], _place)

        return block

    def fit(self, layout: ParameterLayout, gradients: Callable[[Sink], None], *, seed: int) -> dict[str, Tensor]:
        directions = {
            f"{slot.name}:{side}": PrincipalDirections(size, self.rank, derive_seed(seed, slot.name, side))
            for slot, side, size in self._reduced(layout)
        }

        def sink(block: GradientBlock) -> None:
            slot = layout.by_name[block.name]
            left, right = (directions.get(f"{slot.name}:{side}") for side in ("left", "right"))
            if left is None and right is None:
                return
            for _, part in block.chunks(slot.numel):
                matrices = part.dense().reshape(-1, *_matrix_shape(slot)).float()
                with torch.autocast(matrices.device.type, enabled=False):
                    if left is not None:
                        left.add(matrices)
                    if right is not None:
                        right.add(matrices.transpose(1, 2))

        gradients(sink)
        return {name: found.leading() for name, found in directions.items()}

    def _reduced(self, layout: ParameterLayout) -> list[tuple[ParameterSlot, str, int]]:
        """The sides that are larger than r: parameter, side, size."""
        return [
            (slot, side, size)
            for slot in layout
            if len(slot.shape) > 1
            for side, size in zip(("left", "right"), _matrix_shape(slot), strict=True)
            if size > self.rank
        ]

    def _width(self, slot: ParameterSlot) -> int:
        if len(slot.shape) < 2:
            return min(slot.numel, self.rank**2)
        return prod(min(size, self.rank) for size in _matrix_shape(slot))


class TwoStage(Projector):
    """``P vec(G) = S vec(A G Bᵀ)``: the gradient G (d_1, d_2) of a weight matrix is first sketched to at most s × s.

    A (s, d_1) and B (s, d_2) hold random signs over √s; S is a sparse JL transform. Because ``G = Σ_t ∂y_t ⊗ x_t``, only
    output gradients and inputs are sketched, ``A G Bᵀ = Σ_t A∂y_t ⊗ Bx_t``, and G is never formed. For a convolution
    (d_1, d_2, *kernel), the channels are sketched. A side of at most s is left as it is, and so are parameters of one
    dimension. E⟨Pg, Ph⟩ = ⟨g, h⟩; the variance is that of a dense matrix plus about 2/s per sketched side.

    Cheaper than `sparse_jl` where matrices are large; attribution loses little. The two-sided sketch is that of Choe et
    al. 2024, "What is your data worth to GPT?".

    Memory: 4·s·(d_1 + d_2) bytes per matrix, and the signs of S.

    Args:
        sketch: s, the largest side of a sketched matrix.
    """

    def __init__(self, dim: int = 2048, per: Literal["model", "layer"] = "model", *, sketch: int = 64) -> None:
        super().__init__(dim, per)
        self.sketch = require_integer("sketch", sketch, 1, "a number of rows and columns")

    def memory_bytes(self, layout: ParameterLayout) -> int:
        held = 0
        for slot in layout:
            if self._is_sketched(slot):
                held += sum(4 * self.sketch * size for size in slot.shape[:2] if size > self.sketch)
            held += SparseJLBlock.memory_bytes(self._sketched_numel(slot), self.dim)
        return held

    def block(self, slot: ParameterSlot, *, seed: int, device: torch.device) -> BlockMap:
        second = SparseJLBlock(self._sketched_numel(slot), self.dim, seed, device)
        if not self._is_sketched(slot):
            return second
        left = _signs(slot.shape[0], self.sketch, derive_seed(seed, "left"), device)
        right = _signs(slot.shape[1], self.sketch, derive_seed(seed, "right"), device)
        return TwoSidedMap(slot.shape, left, right, lambda sketched, out: second(sketched.flatten(1), out))

    def _is_sketched(self, slot: ParameterSlot) -> bool:
        return len(slot.shape) > 1 and max(slot.shape[:2]) > self.sketch

    def _sketched_numel(self, slot: ParameterSlot) -> int:
        if not self._is_sketched(slot):
            return slot.numel
        return prod(min(size, self.sketch) for size in slot.shape[:2]) * prod(slot.shape[2:])


class TwoSidedMap:
    """A G Bᵀ for the gradients of one parameter.

    Args:
        shape: (d_1, d_2, *rest) as which the parameter is read: its first two dimensions are reduced.
        left: Aᵀ (d_1, r), or None for the identity.
        right: Bᵀ (d_2, r), or None for the identity.
        then: adds the reduced gradients (B, r_1, r_2, *rest) to the features.
    """

    def __init__(
        self, shape: tuple[int, ...], left: Tensor | None, right: Tensor | None, then: Callable[[Tensor, Tensor], None]
    ) -> None:
        self._shape = shape
        self._left, self._right, self._then = left, right, then

    def __call__(self, grad: Tensor, out: Tensor) -> None:
        grad = grad.to(out.dtype).view(-1, *self._shape)
        self._then(_reduce(_reduce(grad, self._left, 1), self._right, 2), out)

    def outer(self, block: OuterProductBlock, out: Tensor) -> None:
        left = _reduce(block.left.to(out.dtype), self._left, 2)
        right = _reduce(block.right.to(out.dtype), self._right, 2)
        self._then(torch.bmm(left.transpose(1, 2), right), out)

    def convolution(self, block: ConvolutionBlock, out: Tensor) -> None:
        by_channels = len(self._shape) > 2  # else, d_2 counts the entries of the kernel too
        if block.groups > 1 or (self._left is None and not by_channels):
            for samples, part in block.chunks(prod(self._shape)):
                self(part.dense().flatten(1), out[samples])
            return
        left, right = _reduce(block.left.to(out.dtype), self._left, 1), block.right.to(out.dtype)
        if by_channels:
            self._then(block.combine(left, _reduce(right, self._right, 1)), out)
        else:
            self._then(_reduce(block.combine(left, right).flatten(2), self._right, 2), out)

    def row_sparse(self, block: RowSparseBlock, out: Tensor) -> None:
        right = _reduce(block.row_grad.to(out.dtype), self._right, 2)
        if self._left is None:
            self._then(RowSparseBlock(block.name, block.rows, right, block.num_rows).dense(), out)
        else:
            self._then(torch.bmm(self._left[block.rows].to(out.dtype).transpose(1, 2), right), out)


def _reduce(values: Tensor, side: Tensor | None, axis: int) -> Tensor:
    """`values` with dimension `axis` of size d multiplied by a side (d, r); unchanged for the identity."""
    if side is None:
        return values
    side = side.to(values.dtype)
    if axis == values.ndim - 1:
        return values @ side
    moved = torch.matmul(side.T, values.flatten(axis + 1))
    return moved.view(*moved.shape[: axis + 1], *values.shape[axis + 1 :])


def _signs(size: int, rank: int, seed: int, device: torch.device) -> Tensor | None:
    """Random signs over √rank, (size, rank); None, the identity, where that would not be smaller."""
    if size <= rank:
        return None
    return random_signs(seed, 0, size * rank, device).view(size, rank).float().mul_(rank**-0.5)


def _matrix_shape(slot: ParameterSlot) -> tuple[int, int]:
    return slot.shape[0], slot.numel // slot.shape[0]


def _place(grad: Tensor, out: Tensor) -> None:
    out += grad.reshape(out.shape)


def _vector(numel: int, dim: int, seed: int, device: torch.device) -> BlockMap:
    if numel > dim:
        return SparseJLBlock(numel, dim, seed, device)
    return _place
