"""Low-rank projection of every layer, with random matrices or with the principal directions of its gradients."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Literal

import torch
from torch import Tensor

from trak_lightning.errors import SettingsError
from trak_lightning.gradients import (
    ConvolutionBlock,
    GradientBlock,
    OuterProductBlock,
    ParameterLayout,
    ParameterSlot,
    RowSparseBlock,
    Sink,
)
from trak_lightning.projectors.base import BlockMap, BlockMaps, Projector
from trak_lightning.projectors.philox import random_signs
from trak_lightning.projectors.principal import PrincipalDirections
from trak_lightning.projectors.sparse_jl import SparseJLBlock
from trak_lightning.seeds import derive_seed


class LowRank(Projector):
    """``P vec(G) = vec(A G Bᵀ)`` for the gradient G (d_1, d_2) of every matrix, with A (r, d_1) and B (r, d_2).

    Each parameter has at most r² features of its own; those of all parameters are joined. A convolution (d_1, d_2, *kernel)
    is the matrix (d_1, d_2·|kernel|), a side of r or fewer is left as it is, and a vector of more than r² entries is
    projected to r² by a sparse JL transform. As ``G = Σ_t ∂y_t ⊗ x_t``, output gradients and inputs are projected and G is
    never formed. LoGRA: Choe et al. 2024, "What is your data worth to GPT?". For k dimensions in total, follow it by
    another projector: see `chain`.

    ``init="random"``: A and B hold random signs over √r; E⟨Pg, Ph⟩ = ⟨g, h⟩. ``init="pca"``: their rows are the leading
    eigenvectors of Σ G Gᵀ and Σ Gᵀ G over `fit_samples` training samples under the same checkpoint (the higher-order
    singular value decomposition), the same whichever extractor computes the gradients. What lies outside is lost, so
    inner products are not kept on average; of the gradients' norm, no other choice of that rank keeps much more.

    Memory: 4·r·(d_1 + d_2) bytes a matrix, and for ``pca``, while it is fitted, about five times that.

    Args:
        rank: r, the largest side of a projected matrix.
        init: ``random`` or ``pca``.
        fit_samples: the number of training samples that ``pca`` looks at, spread evenly over the training set.
    """

    def __init__(self, rank: int = 16, init: Literal["random", "pca"] = "random", fit_samples: int = 256) -> None:
        if rank < 1:
            raise SettingsError(f"rank must be a positive number of rows and columns, got {rank}")
        if init not in ("random", "pca"):
            raise SettingsError(f"init must be 'random' or 'pca', got {init!r}")
        if fit_samples < 1:
            raise SettingsError(f"fit_samples must be a positive number of samples, got {fit_samples}")
        self.rank = rank
        self.init = init
        self.fit_samples = fit_samples if init == "pca" else 0

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
                held += sum(4 * self.rank * side for side in _sides(slot) if side > self.rank)
            elif slot.numel > self.rank**2:
                held += SparseJLBlock.memory_bytes(slot.numel, self.rank**2)
        return held

    def bind(
        self,
        layout: ParameterLayout,
        *,
        seed: int,
        checkpoint: str,
        device: torch.device,
        fitted: Mapping[str, Tensor],
    ) -> BlockMaps:
        if self.init == "pca" and fitted.keys() != {f"{slot.name}:{side}" for slot, side, _ in self._reduced(layout)}:
            raise SettingsError(
                "lowrank with init='pca' must be fitted before it can project. trak featurize and TRAK.featurize do that; "
                "elsewhere, pass what its `fit` returns as Projection(…, fitted=…)."
            )

        def block(slot: ParameterSlot) -> BlockMap:
            own = derive_seed(seed, checkpoint, slot.name)
            if len(slot.shape) < 2:
                return _vector(slot.numel, self.rank**2, own, device)
            sides: list[Tensor | None] = []
            for name, size in zip(("left", "right"), _sides(slot), strict=True):
                if size <= self.rank:
                    sides.append(None)
                elif self.init == "pca":
                    sides.append(fitted[f"{slot.name}:{name}"].to(device))
                else:
                    signs = random_signs(derive_seed(own, name), 0, size * self.rank, device)
                    sides.append(signs.view(size, self.rank).float().mul_(self.rank**-0.5))
            return LowRankBlock(slot, *sides)

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
                matrices = part.dense().reshape(-1, *_sides(slot)).float()
                with torch.autocast(matrices.device.type, enabled=False):
                    if left is not None:
                        left.add(matrices)
                    if right is not None:
                        right.add(matrices.transpose(1, 2))

        gradients(sink)
        return {name: found.leading() for name, found in directions.items()}

    def _reduced(self, layout: ParameterLayout) -> list[tuple[ParameterSlot, str, int]]:
        return [
            (slot, side, size)
            for slot in layout
            if len(slot.shape) > 1
            for side, size in zip(("left", "right"), _sides(slot), strict=True)
            if size > self.rank
        ]

    def _width(self, slot: ParameterSlot) -> int:
        if len(slot.shape) < 2:
            return min(slot.numel, self.rank**2)
        return prod(min(size, self.rank) for size in _sides(slot))


class LowRankBlock:
    """The features of one matrix. A side is (d, r), or None for the identity."""

    def __init__(self, slot: ParameterSlot, left: Tensor | None, right: Tensor | None) -> None:
        self._sides = _sides(slot)
        self._left, self._right = left, right

    def __call__(self, grad: Tensor, out: Tensor) -> None:
        matrices = grad.to(out.dtype).view(-1, *self._sides)
        reduced = matrices if self._left is None else self._left.T.to(out.dtype) @ matrices
        self._finish(_times(reduced, self._right), out)

    def outer(self, block: OuterProductBlock, out: Tensor) -> None:
        left, right = _times(block.left.to(out.dtype), self._left), _times(block.right.to(out.dtype), self._right)
        self._finish(left.transpose(1, 2) @ right, out)

    def convolution(self, block: ConvolutionBlock, out: Tensor) -> None:
        if block.groups > 1 or self._left is None:
            for samples, part in block.chunks(prod(self._sides)):
                self(part.dense().flatten(1), out[samples])
            return
        channels = block.left.to(out.dtype)
        left = (self._left.T.to(out.dtype) @ channels.flatten(2)).view(len(channels), -1, *channels.shape[2:])
        self._finish(_times(block.combine(left, block.right.to(out.dtype)).flatten(2), self._right), out)

    def row_sparse(self, block: RowSparseBlock, out: Tensor) -> None:
        right = _times(block.row_grad.to(out.dtype), self._right)
        if self._left is None:
            self._finish(RowSparseBlock(block.name, block.rows, right, block.num_rows).dense(), out)
        else:
            self._finish(self._left[block.rows].to(out.dtype).transpose(1, 2) @ right, out)

    def _finish(self, reduced: Tensor, out: Tensor) -> None:
        out += reduced.reshape(out.shape)


def _sides(slot: ParameterSlot) -> tuple[int, int]:
    return slot.shape[0], slot.numel // slot.shape[0]


def _times(values: Tensor, side: Tensor | None) -> Tensor:
    return values if side is None else values @ side.to(values.dtype)


def _vector(numel: int, dim: int, seed: int, device: torch.device) -> BlockMap:
    if numel > dim:
        return SparseJLBlock(numel, dim, seed, device)

    def place(grad: Tensor, out: Tensor) -> None:
        out += grad

    return place
