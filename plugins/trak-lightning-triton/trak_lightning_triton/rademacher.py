"""`rademacher` with a matrix that exists only in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trak_lightning.gradients import ParameterSlot
from trak_lightning.projectors import BlockMap
from trak_lightning.projectors.dense import Rademacher
from trak_lightning_triton.stream import INTERPRETED, aligned_signs, runs_on, signs_at


class RademacherTriton(Rademacher):
    """The matrix of `rademacher`, drawn and multiplied tile by tile inside a Triton kernel. A run that was
    started with `rademacher` may be resumed with this projector, and vice versa. On a CPU, and for float64, this is
    `rademacher` itself.

    Products are summed in float32 and never in TF32: entries are ±1, so a product with a 16-bit gradient is exact, and a
    float32 gradient is multiplied without rounding. Choose a k that 128 divides: then one run of Philox gives 128 entries.

    Memory: nothing is held on a GPU; the partial sums of a batch of B samples take at most 4·32·B·k bytes.

    Args:
        dim: k, the number of projected dimensions.
        per: what has k dimensions, the ``model`` or each ``layer``.
        memory_budget: as for `rademacher`; used on a CPU only.
    """

    trak_api = (2, 0)

    @property
    def state(self) -> dict[str, object]:
        return {**super().state, "class": f"{Rademacher.__module__}.{Rademacher.__qualname__}"}

    def block(self, slot: ParameterSlot, *, seed: int, device: torch.device) -> BlockMap:
        if not runs_on(device):
            return super().block(slot, seed=seed, device=device)
        in_double: list[BlockMap] = []

        def project(grad: Tensor, out: Tensor) -> None:
            if torch.float64 in (grad.dtype, out.dtype):
                in_double[:] = in_double or [Rademacher.block(self, slot, seed=seed, device=device)]
                in_double[0](grad, out)
            else:
                out.add_(multiply(grad, seed, self.dim), alpha=self.dim**-0.5)

        project.whole_batches = True  # type: ignore[attr-defined]
        return project


def multiply(grad: Tensor, seed: int, dim: int) -> Tensor:
    """``grad`` (B, numel) times the signs (numel, k) of `seed`, float32 (B, k)."""
    B, numel = grad.shape
    block_e, block_k = 32, 128
    # A function of shapes only, so that a row's bits depend neither on the batch nor on the device.
    splits = max(1, min(32, numel // 4096))
    entries_a_split = triton.cdiv(triton.cdiv(numel, splits), block_e) * block_e
    block_b = min(64, max(16, triton.next_power_of_2(B)))
    partial = torch.empty(splits, B, dim, dtype=torch.float32, device=grad.device)
    grid = (triton.cdiv(B, block_b), triton.cdiv(dim, block_k), splits)
    _multiply[grid](
        grad, partial, seed, B, numel, dim, entries_a_split,
        ALIGNED=dim % 128 == 0, IN_FLOAT32=INTERPRETED, BLOCK_B=block_b, BLOCK_E=block_e, BLOCK_K=block_k,
    )  # fmt: skip
    return partial.sum(0)


@triton.jit(do_not_specialize=["seed", "batch"])
def _multiply(
    grad,  # (batch, numel)
    partial,  # (splits, batch, dim)
    seed,
    batch,
    numel,
    dim,
    entries_a_split,
    ALIGNED: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    feature = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    split = tl.program_id(2).to(tl.int64)
    in_batch = sample < batch
    total = tl.zeros((BLOCK_B, BLOCK_K), dtype=tl.float32)
    start = split * entries_a_split
    for first in range(start, tl.minimum(start + entries_a_split, numel), BLOCK_E):
        entry = first + tl.arange(0, BLOCK_E).to(tl.int64)
        mask = in_batch[:, None] & (entry < numel)[None, :]
        values = tl.load(grad + sample[:, None] * numel + entry[None, :], mask=mask, other=0)
        if ALIGNED:
            counters: tl.constexpr = BLOCK_K // 128
            own = tl.program_id(1).to(tl.int64) * counters + tl.arange(0, counters)
            signs = aligned_signs(seed, entry[:, None] * (dim // 128) + own[None, :], BLOCK_E, counters)
        else:
            signs = signs_at(seed, entry[:, None] * dim + feature[None, :])
        if IN_FLOAT32:  # the interpreter cannot multiply bfloat16
            values = values.to(tl.float32)
        # Not TF32, which would round float32 gradients to eleven bits.
        total = tl.dot(values, signs.to(values.dtype), total, input_precision="ieee")
    where = (split * batch + sample[:, None]) * dim + feature[None, :]
    tl.store(partial + where, total, mask=in_batch[:, None] & (feature < dim)[None, :])
