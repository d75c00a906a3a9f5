"""Sparse Johnson-Lindenstrauss transform with one non-zero a column, streamed in runs."""

import math

import torch
from torch import Tensor

from trak_lightning.gradients import ParameterLayout, ParameterSlot, RowSparseBlock
from trak_lightning.projectors.base import BlockMap, Projector
from trak_lightning.projectors.philox import random_integers, random_signs
from trak_lightning.seeds import derive_seed


class SparseJL(Projector):
    """Every gradient entry is added, with a random sign, to one of k features: p operations a sample instead of p·k.

    Each flattened parameter is cut into runs of L entries, L the largest prime up to k. Entries are multiplied by signs;
    runs r, r + G, r + 2G … are summed; the G sums are rolled by a random offset each and added to the features:
    ``features[(j + o_{r mod G}) mod k] += s_{r,j} · g_{r,j}``. Reading is sequential, and no index is stored.

    ``E⟨Pg, Ph⟩ = ⟨g, h⟩`` over signs. Two entries share a feature with probability 1/k if they are in different groups;
    in the same group only if they lie a multiple of G·L apart, which no row length of a matrix divides, L being prime.
    So the variance is that of a dense ±1 matrix when no few entries dominate (Charikar, Chen and Farach-Colton 2002;
    Kane and Nelson 2014).

    Memory: one byte a parameter for the signs.

    Args:
        dim: k, the number of projected dimensions. The cost does not depend on it.
    """

    def memory_bytes(self, layout: ParameterLayout) -> int:
        return sum(SparseJLBlock.memory_bytes(slot.numel, self.dim) for slot in layout)

    def block(self, slot: ParameterSlot, *, seed: int, device: torch.device) -> BlockMap:
        return SparseJLBlock(slot.numel, self.dim, seed, device)


class SparseJLBlock:
    """The columns of one parameter."""

    def __init__(self, numel: int, dim: int, seed: int, device: torch.device) -> None:
        self._dim = dim
        self._run = _largest_prime(dim)
        runs = -(-numel // self._run)
        # As many groups as runs in a group: the fewest operations.
        self._groups = math.ceil(math.sqrt(runs))
        self._signs = random_signs(seed, 0, numel, device)
        self._offsets = random_integers(derive_seed(seed, "offsets"), self._groups, dim, device)
        self._rolls = self._offsets.tolist()

    @staticmethod
    def memory_bytes(numel: int, dim: int) -> int:
        """Signs, and an offset a group of runs."""
        runs = -(-numel // _largest_prime(dim))
        return numel + 8 * math.ceil(math.sqrt(runs))

    def __call__(self, grad: Tensor, out: Tensor) -> None:
        """Add pieces in their order, so that a sum does not depend on the number of threads."""
        B, numel = grad.shape
        width = min(self._groups * self._run, numel)
        sums = torch.zeros(B, width, dtype=out.dtype, device=out.device)
        for start in range(0, numel, width):
            piece = grad[:, start : start + width]
            signs = self._signs[start : start + width].to(out.dtype)
            sums[:, : piece.shape[1]].addcmul_(piece.to(out.dtype), signs)
        rolled = torch.zeros(B, self._dim + self._run, dtype=out.dtype, device=out.device)
        for group, offset in enumerate(self._rolls):
            run = sums[:, group * self._run : (group + 1) * self._run]
            rolled[:, offset : offset + run.shape[1]] += run
        out += rolled[:, : self._dim]
        out[:, : self._run] += rolled[:, self._dim :]

    def row_sparse(self, block: RowSparseBlock, out: Tensor) -> None:
        """The same for an embedding table, touching only the rows that occur."""
        B, T, d = block.row_grad.shape
        entries = (block.rows.unsqueeze(-1) * d + torch.arange(d, device=out.device)).reshape(B, T * d)
        group, place = entries // self._run % self._groups, entries % self._run
        columns = (place + self._offsets[group]) % self._dim
        out.scatter_add_(1, columns, block.row_grad.reshape(B, T * d).to(out.dtype) * self._signs[entries])


def _largest_prime(bound: int) -> int:
    """The largest prime up to `bound`; 1 for 1."""
    return next(n for n in range(bound, 0, -1) if all(n % factor for factor in range(2, int(n**0.5) + 1)))
