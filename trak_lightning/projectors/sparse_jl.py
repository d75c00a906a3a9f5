"""Sparse Johnson-Lindenstrauss transform with one non-zero a column, streamed in runs."""

import torch
from torch import Tensor

from trak_lightning.gradients import ParameterSlot, RowSparseBlock
from trak_lightning.projectors.base import BlockMap, Projector
from trak_lightning.projectors.philox import random_integers, random_signs
from trak_lightning.seeds import derive_seed


class SparseJL(Projector):
    """Every gradient entry is added, with a random sign, to one of k features: p operations a sample instead of p·k.

    Each flattened parameter is cut into runs of k entries; run r is multiplied by signs, rolled by a random offset o_r
    and added: ``features[(j + o_r) mod k] += s_{r,j} · g_{r,j}``. Reading is sequential, and no index is stored.
    ``E⟨Pg, Ph⟩ = ⟨g, h⟩``, with the variance of a dense ±1 matrix when no few entries dominate (Charikar, Chen and
    Farach-Colton 2002; Kane and Nelson 2014).

    Memory: one byte a parameter for the signs.

    Args:
        dim: k, the number of projected dimensions. The cost does not depend on it.
    """

    def block(self, slot: ParameterSlot, *, seed: int, device: torch.device) -> BlockMap:
        return SparseJLBlock(slot.numel, self.dim, seed, device)


class SparseJLBlock:
    """The columns of one parameter."""

    def __init__(self, numel: int, dim: int, seed: int, device: torch.device) -> None:
        self._dim = dim
        self._signs = random_signs(seed, 0, numel, device)
        self._offsets = random_integers(derive_seed(seed, "offsets"), -(-numel // dim), dim, device)

    def __call__(self, grad: Tensor, out: Tensor) -> None:
        """Add runs in their order, so that a sum does not depend on the number of threads."""
        k = self._dim
        for run, offset in enumerate(self._offsets.tolist()):
            piece = slice(run * k, min((run + 1) * k, grad.shape[1]))
            signed = grad[:, piece].to(out.dtype) * self._signs[piece]
            straight = min(k - offset, signed.shape[1])
            out[:, offset : offset + straight] += signed[:, :straight]
            out[:, : signed.shape[1] - straight] += signed[:, straight:]

    def row_sparse(self, block: RowSparseBlock, out: Tensor) -> None:
        """The same for an embedding table, touching only the rows that occur."""
        B, T, d = block.row_grad.shape
        entries = (block.rows.unsqueeze(-1) * d + torch.arange(d, device=out.device)).reshape(B, T * d)
        columns = (entries + self._offsets[entries // self._dim]) % self._dim
        out.scatter_add_(1, columns, block.row_grad.reshape(B, T * d).to(out.dtype) * self._signs[entries])
