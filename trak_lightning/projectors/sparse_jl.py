"""Sparse Johnson-Lindenstrauss transform, streamed in runs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from trak_lightning.errors import SettingsError, require_integer
from trak_lightning.gradients import ConvolutionBlock, OuterProductBlock, ParameterLayout, ParameterSlot, RowSparseBlock
from trak_lightning.projectors.base import FACTORS, BlockMap, Projector
from trak_lightning.projectors.philox import random_integers, random_signs
from trak_lightning.projectors.signed_sums import accumulate, entries_at_a_time, fold, project
from trak_lightning.seeds import derive_seed


class SparseJL(Projector):
    """Every gradient entry is added, with a random sign, to one of k features: p operations per sample instead of p·k.

    Each flattened parameter is cut into runs of L entries, L the largest prime up to k. Entries are multiplied by signs;
    runs r, r + G, r + 2G … are summed; each of the G sums is rolled by its own random offset and added to the features:
    ``features[(j + o_{r mod G}) mod k] += s_{r,j} · g_{r,j}``. Reading is sequential, and no index is stored.

    ``E⟨Pg, Ph⟩ = ⟨g, h⟩`` over signs. Two entries in different groups share a feature with probability 1/k. Two entries in
    the same group share one only if they lie a multiple of G·L apart; because L is prime, no row length of a matrix
    divides that. So the variance is that of a dense ±1 matrix unless a few entries dominate (Charikar, Chen and
    Farach-Colton 2002; Kane and Nelson 2014).

    With ``nnz`` = s, the features are split into s parts, and every entry is added to one feature of each part, with its
    own sign over √s: Kane and Nelson's block construction. The variance is the same; the tails are thinner where a few
    entries dominate.

    Memory: ``nnz`` bytes per gradient entry for the signs.

    Args:
        dim: k, the number of projected dimensions. The cost does not depend on it.
        nnz: s, the number of non-zeros per column. The cost is proportional to it.
    """

    def __init__(self, dim: int = 2048, per: Literal["model", "layer"] = "model", *, nnz: int = 1) -> None:
        super().__init__(dim, per)
        self.nnz = require_integer("nnz", nnz, 1, "a number of entries per column")
        if self.nnz > self.dim:
            raise SettingsError(f"nnz must lie in 1 … dim = {self.dim}, got {self.nnz}")

    def memory_bytes(self, layout: ParameterLayout) -> int:
        return sum(
            SparseJLBlock.memory_bytes(slot.numel, stop - start) for slot in layout for start, stop in self._parts()
        )

    def block(self, slot: ParameterSlot, *, seed: int, device: torch.device) -> BlockMap:
        if self.nnz == 1:
            return self.part(slot.numel, self.dim, seed, device)
        parts = [
            (slice(start, stop), self.part(slot.numel, stop - start, derive_seed(seed, "nnz", number), device))
            for number, (start, stop) in enumerate(self._parts())
        ]
        return _Parts(parts)

    def part(self, numel: int, dim: int, seed: int, device: torch.device) -> BlockMap:
        """Return the block with one non-zero per column: `numel` entries to `dim` features."""
        return SparseJLBlock(numel, dim, seed, device)

    def _parts(self) -> list[tuple[int, int]]:
        return [(self.dim * part // self.nnz, self.dim * (part + 1) // self.nnz) for part in range(self.nnz)]


class _Parts:
    """Several maps, each to its own columns, divided by the square root of their number."""

    def __init__(self, parts: list[tuple[slice, BlockMap]]) -> None:
        self._parts = parts
        for name in FACTORS.values():
            if all(hasattr(part, name) for _, part in parts):
                setattr(self, name, partial(self._add, name))

    def __call__(self, grad: Tensor, out: Tensor) -> None:
        self._add("__call__", grad, out)

    def _add(self, method: str, gradient: Any, out: Tensor) -> None:
        features = torch.zeros_like(out)
        for columns, part in self._parts:
            getattr(part, method)(gradient, features[:, columns])
        out.add_(features, alpha=len(self._parts) ** -0.5)


@dataclass(frozen=True)
class Runs:
    """Which feature each entry of one parameter is added to: the length and number of runs, and the seed of their offsets."""

    dim: int
    length: int
    groups: int
    offset_seed: int

    @classmethod
    def of(cls, numel: int, dim: int, seed: int) -> "Runs":
        length = _largest_prime(dim)
        # As many groups as there are runs in a group costs the fewest operations. Entries of one group that lie G·L apart
        # always share a feature, which adds 1/G to the variance of a dense matrix.
        groups = math.ceil(math.sqrt(-(-numel // length)))
        return cls(dim, length, groups, derive_seed(seed, "offsets"))

    def offsets(self, device: torch.device) -> Tensor:
        """(groups,) int64."""
        return random_integers(self.offset_seed, self.groups, self.dim, device)

    def add_rows(self, block: RowSparseBlock, out: Tensor, offsets: Tensor, signs: Callable[[Tensor], Tensor]) -> None:
        """Add the rows of an embedding table that occur in the batch; `signs` looks up the signs of entries (int64)."""
        B, T, d = block.row_grad.shape
        entries = (block.rows.unsqueeze(-1) * d + torch.arange(d, device=out.device)).reshape(B, T * d)
        group, place = entries // self.length % self.groups, entries % self.length
        columns = (place + offsets[group]) % self.dim
        out.scatter_add_(1, columns, block.row_grad.reshape(B, T * d).to(out.dtype) * signs(entries))


class SparseJLBlock:
    """The columns of one parameter."""

    def __init__(self, numel: int, dim: int, seed: int, device: torch.device) -> None:
        self._numel, self._runs = numel, Runs.of(numel, dim, seed)
        self._width = min(self._runs.groups * self._runs.length, numel)
        self._signs = random_signs(seed, 0, numel, device)
        self._offsets = self._runs.offsets(device)

    @staticmethod
    def memory_bytes(numel: int, dim: int) -> int:
        """Return the bytes of the signs, and of one offset per group of runs."""
        return numel + 8 * Runs.of(numel, dim, 0).groups

    def __call__(self, grad: Tensor, out: Tensor) -> None:
        project(grad, self._signs, self._offsets, self._runs.length, self._width, out)

    def convolution(self, block: ConvolutionBlock, out: Tensor) -> None:
        """Add a convolution, forming the gradients of a few samples at a time."""
        for samples, part in block.chunks(self._numel):
            self(part.dense().flatten(1), out[samples])

    def outer(self, block: OuterProductBlock, out: Tensor) -> None:
        """Add a linear layer; for a large matrix, form the gradients of some rows at a time, for all samples."""
        tile = entries_at_a_time(out)
        if self._numel <= 2 * tile:
            for samples, part in block.chunks(self._numel):
                self(part.dense().flatten(1), out[samples])
            return
        sums = out.new_zeros(len(out), self._width)
        (B, _, d_left), d_right = block.left.shape, block.right.shape[2]
        rows = max(1, tile // (2 * B * d_right))
        for start in range(0, d_left, rows):
            grad = torch.bmm(block.left[:, :, start : start + rows].transpose(1, 2), block.right)
            accumulate(grad.flatten(1), start * d_right, self._signs, sums)
        fold(sums, self._offsets, self._runs.length, out)

    def row_sparse(self, block: RowSparseBlock, out: Tensor) -> None:
        """Add an embedding table, touching only the rows that occur."""
        self._runs.add_rows(block, out, self._offsets, self._signs.__getitem__)


def _largest_prime(bound: int) -> int:
    """The largest prime up to `bound`; 1 for 1."""
    return next(n for n in range(bound, 0, -1) if all(n % factor for factor in range(2, int(n**0.5) + 1)))
