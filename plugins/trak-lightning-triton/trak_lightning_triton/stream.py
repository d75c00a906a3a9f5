"""The random streams of `trak_lightning.projectors.philox`, inside kernels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1), on the CPU."""


def runs_on(device: torch.device) -> bool:
    """Whether kernels can be launched for tensors of this device."""
    return device.type == "cuda" or INTERPRETED


@triton.jit
def signs_at(seed, position):
    """Entries `position` (int64) of ``random_signs``: ±1, int32."""
    w0, w1, w2, w3 = words(seed, position // 128)
    place = position % 128 // 32
    word = tl.where(place == 0, w0, tl.where(place == 1, w1, tl.where(place == 2, w2, w3)))
    bit = (word >> (position % 32).to(tl.uint32)) & 1
    return 2 * bit.to(tl.int32) - 1


@triton.jit
def aligned_signs(seed, counter, ROWS: tl.constexpr, COUNTERS: tl.constexpr):
    """The 128 signs of each of `counter` (ROWS, COUNTERS), in order: (ROWS, 128·COUNTERS), int32. One run of Philox gives
    all 128."""
    w0, w1, w2, w3 = words(seed, counter)
    ordered = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (ROWS, COUNTERS * 4, 1))
    bits = (ordered >> tl.arange(0, 32).to(tl.uint32)[None, None, :]) & 1
    return 2 * tl.reshape(bits, (ROWS, COUNTERS * 128)).to(tl.int32) - 1


@triton.jit
def integer_at(seed, position, bound):
    """Entry `position` of ``random_integers``: 0 … bound − 1, int64."""
    w0, w1, w2, w3 = words(seed, position // 4)
    place = position % 4
    word = tl.where(place == 0, w0, tl.where(place == 1, w1, tl.where(place == 2, w2, w3)))
    return (word.to(tl.int64) * bound) >> 32


@triton.jit
def words(seed, counter):
    """Philox4x32-10 of an int64 counter, as four 32-bit words."""
    low, high = (counter & 0xFFFFFFFF).to(tl.uint32), (counter >> 32).to(tl.uint32)
    zero = tl.zeros_like(low)
    return tl.philox(seed, low, high, zero, zero)


@triton.jit(do_not_specialize=["seed", "count"])
def _gather_signs(positions, signs, seed, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    position = tl.load(positions + place, mask=inside, other=0)
    tl.store(signs + place, signs_at(seed, position).to(tl.int8), mask=inside)


def gather_signs(seed: int, positions: Tensor) -> Tensor:
    """``random_signs`` at any positions (int64), int8 of the same shape."""
    positions = positions.contiguous()
    signs = torch.empty(positions.shape, dtype=torch.int8, device=positions.device)
    block = 1024
    _gather_signs[(triton.cdiv(positions.numel(), block),)](positions, signs, seed, positions.numel(), BLOCK=block)
    return signs
