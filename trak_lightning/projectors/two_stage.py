"""A small sketch of either side of every weight matrix, and a sparse JL transform of what is left."""

import math
from typing import Literal

import torch
from torch import Tensor

from trak_lightning.errors import SettingsError
from trak_lightning.gradients import ConvolutionBlock, OuterProductBlock, ParameterLayout, ParameterSlot, RowSparseBlock
from trak_lightning.projectors.base import BlockMap, Projector
from trak_lightning.projectors.philox import random_signs
from trak_lightning.projectors.sparse_jl import SparseJLBlock
from trak_lightning.seeds import derive_seed


class TwoStage(Projector):
    """``P vec(G) = S vec(A G Bᵀ)``: the gradient G (d_1, d_2) of a weight matrix is first sketched to at most s × s.

    A (s, d_1) and B (s, d_2) are random signs over √s, S is a sparse JL transform. As ``G = Σ_t ∂y_t ⊗ x_t``, it is
    enough to sketch output gradients and inputs: ``A G Bᵀ = Σ_t A∂y_t ⊗ Bx_t``, and G itself is never formed. Of a
    convolution (d_1, d_2, *kernel), channels are sketched; a side of s or fewer is left as it is, and so are parameters
    of one dimension. E⟨Pg, Ph⟩ = ⟨g, h⟩; the variance is that of a dense matrix plus about 2/s a sketched side.

    Cheaper than `sparse_jl` where matrices are large; attribution loses little. The two-sided sketch is that of Choe et
    al. 2024, "What is your data worth to GPT?".

    Memory: 4·s·(d_1 + d_2) bytes a matrix.

    Args:
        dim: k, the number of projected dimensions.
        per: what has k dimensions, the ``model`` or each ``layer``.
        sketch: s, the largest side of a sketched matrix.
    """

    def __init__(self, dim: int = 2048, per: Literal["model", "layer"] = "model", *, sketch: int = 64) -> None:
        super().__init__(dim, per)
        if sketch < 1:
            raise SettingsError(f"sketch must be a positive number of rows and columns, got {sketch}")
        self.sketch = sketch

    def memory_bytes(self, layout: ParameterLayout) -> int:
        held = 0
        for slot in layout:
            if self._is_sketched(slot):
                held += sum(4 * self.sketch * size for size in slot.shape[:2] if size > self.sketch)
            held += SparseJLBlock.memory_bytes(self._sketched_numel(slot), self.dim)
        return held

    def _is_sketched(self, slot: ParameterSlot) -> bool:
        return len(slot.shape) > 1 and max(slot.shape[:2]) > self.sketch

    def _sketched_numel(self, slot: ParameterSlot) -> int:
        if not self._is_sketched(slot):
            return slot.numel
        return math.prod(min(size, self.sketch) for size in slot.shape[:2]) * math.prod(slot.shape[2:])

    def block(self, slot: ParameterSlot, *, seed: int, device: torch.device) -> BlockMap:
        if not self._is_sketched(slot):
            return SparseJLBlock(slot.numel, self.dim, seed, device)
        return TwoStageBlock(slot.shape, self.dim, self.sketch, seed, device)


class TwoStageBlock:
    """The columns of one matrix or convolution."""

    def __init__(self, shape: tuple[int, ...], dim: int, sketch: int, seed: int, device: torch.device) -> None:
        self._shape = shape
        self._left = _signs(shape[0], sketch, derive_seed(seed, "left"), device)
        self._right = _signs(shape[1], sketch, derive_seed(seed, "right"), device)
        numel = min(shape[0], sketch) * min(shape[1], sketch) * torch.Size(shape[2:]).numel()
        self._sparse_jl = SparseJLBlock(numel, dim, seed, device)

    def __call__(self, grad: Tensor, out: Tensor) -> None:
        grad = grad.to(out.dtype).view(-1, *self._shape)
        self._finish(_apply(self._right, _apply(self._left, grad, 1), 2), out)

    def outer(self, block: OuterProductBlock, out: Tensor) -> None:
        left, right = _apply(self._left, block.left, 2), _apply(self._right, block.right, 2)
        self._finish(torch.bmm(left.transpose(1, 2), right), out)

    def convolution(self, block: ConvolutionBlock, out: Tensor) -> None:
        left, right = block.left, block.right
        if block.groups == 1:
            left, right = _apply(self._left, left, 1), _apply(self._right, right, 1)
            self._finish(block.combine(left, right), out)
        else:
            self(block.dense().flatten(1), out)

    def row_sparse(self, block: RowSparseBlock, out: Tensor) -> None:
        right = _apply(self._right, block.row_grad, 2)
        if self._left is None:
            self._finish(RowSparseBlock(block.name, block.rows, right, block.num_rows).dense(), out)
        else:
            self._finish(torch.bmm(self._left[block.rows].to(right.dtype).transpose(1, 2), right), out)

    def _finish(self, sketched: Tensor, out: Tensor) -> None:
        self._sparse_jl(sketched.reshape(len(sketched), -1), out)


def _signs(size: int, sketch: int, seed: int, device: torch.device) -> Tensor | None:
    """The transpose of a sketch matrix, (size, sketch); None for the identity."""
    if size <= sketch:
        return None
    return random_signs(seed, 0, size * sketch, device).view(size, sketch).float() * sketch**-0.5


def _apply(signs: Tensor | None, values: Tensor, axis: int) -> Tensor:
    """`values` with the size of one dimension reduced to s."""
    if signs is None:
        return values
    signs = signs.to(values.dtype)
    if axis == values.ndim - 1:
        return values @ signs
    moved = torch.matmul(signs.T, values.flatten(axis + 1).movedim(axis, -2)).movedim(-2, axis)
    return moved.reshape(*moved.shape[: axis + 1], *values.shape[axis + 1 :])
