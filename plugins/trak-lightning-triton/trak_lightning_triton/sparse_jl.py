"""A Triton kernel for the projector `sparse_jl`, which reads the gradient once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trak_lightning.gradients import RowSparseBlock
from trak_lightning.projectors import BlockMap
from trak_lightning.projectors.sparse_jl import Runs, SparseJL
from trak_lightning_triton.stream import gather_signs, integer_at, runs_on, signs_at


class SparseJLTriton(SparseJL):
    """The matrix of `sparse_jl`, applied by a Triton kernel. A run that was started with
    `sparse_jl` may be resumed with this projector, and vice versa.

    Philox draws signs and offsets inside the kernel, once for all samples that a program handles. Partial sums are added in
    a fixed order, so that the same batch gives the same bits. On a CPU this is `sparse_jl` itself.

    Memory: nothing is held on a GPU; the partial sums of a batch of B samples take at most 4·64·B·k bytes.

    Args:
        dim: k, the number of projected dimensions.
        per: what has k dimensions, the ``model`` or each ``layer``.
        nnz: the number of non-zeros per column.
    """

    trak_api = (2, 0)

    @property
    def state(self) -> dict[str, object]:
        return {**super().state, "class": f"{SparseJL.__module__}.{SparseJL.__qualname__}"}

    def part(self, numel: int, dim: int, seed: int, device: torch.device) -> BlockMap:
        if not runs_on(device):
            return super().part(numel, dim, seed, device)
        return SparseJLTritonBlock(numel, dim, seed)


class SparseJLTritonBlock:
    """The columns of one parameter, with one of the non-zeros of each column."""

    def __init__(self, numel: int, dim: int, seed: int) -> None:
        self._numel, self._dim, self._seed = numel, dim, seed
        self._runs = Runs.of(numel, dim, seed)

    def __call__(self, grad: Tensor, out: Tensor) -> None:
        B, runs = len(grad), triton.cdiv(self._numel, self._runs.length)
        # A function of shapes only, so that a row's bits depend neither on the batch nor on the device.
        splits = max(1, min(64, runs // 8))
        block_b, block_k = min(16, triton.next_power_of_2(B)), min(512, triton.next_power_of_2(self._dim))
        partial = torch.empty(splits, B, self._dim, dtype=out.dtype, device=out.device)
        grid = (triton.cdiv(B, block_b), triton.cdiv(self._dim, block_k), splits)
        _sparse_jl[grid](
            grad, partial, self._seed, self._runs.offset_seed, B, self._numel, self._dim,
            self._runs.length, self._runs.groups, runs, triton.cdiv(runs, splits),
            BLOCK_B=block_b, BLOCK_K=block_k,
        )  # fmt: skip
        out += partial.sum(0)

    def row_sparse(self, block: RowSparseBlock, out: Tensor) -> None:
        """Add an embedding table, touching only the rows that occur, as `sparse_jl` does."""
        offsets = self._runs.offsets(out.device)
        self._runs.add_rows(block, out, offsets, lambda entries: gather_signs(self._seed, entries))


@triton.jit(do_not_specialize=["seed", "offset_seed", "batch"])
def _sparse_jl(
    grad,  # (batch, numel)
    partial,  # (splits, batch, dim)
    seed,
    offset_seed,
    batch,
    numel,
    dim,
    length,
    groups,
    runs,
    runs_a_split,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Features ``f`` of a tile of samples, over a range of runs: ``Σ_r s_{r,j} · g_{r,j}``, j = (f − o_{r mod G}) mod k."""
    sample = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    feature = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    split = tl.program_id(2).to(tl.int64)
    in_batch, in_features = sample < batch, feature < dim
    total = tl.zeros((BLOCK_B, BLOCK_K), dtype=partial.dtype.element_ty)
    first = split * runs_a_split
    for run in range(first, tl.minimum(first + runs_a_split, runs)):
        group = run % groups + tl.zeros((1,), tl.int64)
        offset = integer_at(offset_seed, group, dim)
        place = feature - offset
        place = tl.where(place < 0, place + dim, place)
        entry = run * length + place
        inside = in_features & (place < length) & (entry < numel)
        values = tl.load(
            grad + sample[:, None] * numel + entry[None, :], mask=in_batch[:, None] & inside[None, :], other=0
        )
        total += values.to(total.dtype) * signs_at(seed, entry)[None, :].to(total.dtype)
    where = (split * batch + sample[:, None]) * dim + feature[None, :]
    tl.store(partial + where, total, mask=in_batch[:, None] & in_features[None, :])
