"""Subsampled randomized Hadamard transform."""

import torch
from scipy.linalg import hadamard
from torch import Tensor

from trak_lightning.gradients import ParameterLayout, ParameterSlot
from trak_lightning.projectors.base import BlockMap, Projector
from trak_lightning.projectors.philox import random_signs, random_subset
from trak_lightning.seeds import derive_seed

_SEGMENT = 2**14
"""The smallest segment length of a large parameter: longer segments cost more, and shorter ones are sampled more often."""


class Hadamard(Projector):
    """``P_s = √(L/k) · S H D`` for every segment s of L entries: random signs D, a Walsh-Hadamard transform H, k rows S.

    Each flattened parameter is cut into segments of L entries, where L is a power of two and at least k; the last one is
    padded with zeros. Each segment has its own signs and rows, and the projections of all segments are added. Every
    feature is a ±1 sum over whole segments, as for a dense ±1 matrix, at L·log L operations instead of L·k. Ailon and
    Chazelle 2009, "The fast Johnson-Lindenstrauss transform"; Tropp 2011, "Improved analysis of the subsampled randomized
    Hadamard transform".

    Memory: one byte per gradient entry for the signs and 8·k bytes per segment for the rows; together at most 9 bytes per
    entry, or 17·k bytes for a parameter smaller than k. While projecting, two more copies of the gradients: of a few
    samples where they are given as factors, of the whole batch where they are dense.
    """

    def memory_bytes(self, layout: ParameterLayout) -> int:
        padded = sum(_segments(slot.numel, self.dim) * _length(slot.numel, self.dim) for slot in layout)
        return padded + 8 * self.dim * sum(_segments(slot.numel, self.dim) for slot in layout)

    def block(self, slot: ParameterSlot, *, seed: int, device: torch.device) -> BlockMap:
        k, length, segments = self.dim, _length(slot.numel, self.dim), _segments(slot.numel, self.dim)
        signs = random_signs(derive_seed(seed, "signs"), 0, segments * length, device).view(segments, length)
        rows = torch.stack(
            [random_subset(derive_seed(seed, "rows", segment), k, length, device) for segment in range(segments)]
        )

        def project(grad: Tensor, out: Tensor) -> None:
            padded = torch.zeros(len(grad), segments * length, dtype=out.dtype, device=out.device)
            padded[:, : slot.numel] = grad
            rotated = walsh_hadamard(padded.view(-1, segments, length).mul_(signs))
            # The rows are sorted, so that entries are gathered from left to right.
            for segment in range(segments):
                out.add_(rotated[:, segment].index_select(1, rows[segment]), alpha=k**-0.5)

        return project


def walsh_hadamard(values: Tensor) -> Tensor:
    """Apply H to the last dimension, whose size is a power of two; H has entries ±1, in natural order.

    H is the Kronecker product of small Hadamard matrices; each is applied as a matrix product over one factor of the
    dimension. This takes fewer passes over memory than butterflies of two.
    """
    shape, size = values.shape, values.shape[-1]
    before = 1
    while before < size:
        factor = min(_FACTOR, size // before)
        after = size // before // factor
        small = torch.from_numpy(hadamard(factor)).to(values)
        if after == 1:
            values = values.reshape(-1, factor) @ small
        else:
            values = torch.matmul(small, values.reshape(-1, factor, after))
        before *= factor
    return values.reshape(shape)


_FACTOR = 32
"""The size of these matrices."""


def _length(numel: int, dim: int) -> int:
    return 1 << (max(dim, min(numel, _SEGMENT)) - 1).bit_length()


def _segments(numel: int, dim: int) -> int:
    return -(-numel // _length(numel, dim))
