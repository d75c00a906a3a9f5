"""Random numbers that are a function of (seed, position): the same on every device, in any order, and in tiles of any size.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), in torch integer
arithmetic. Nothing here reads or changes torch's global generators.
"""

import math

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = 0xFFFFFFFF
_TILE = 2**20
"""Signs generated at a time."""


def philox(seed: int, counters: Tensor) -> Tensor:
    """Return 128 random bits for every counter, as four 32-bit words.

    Args:
        seed: the key, 64 bits.
        counters: (N,) int64, at least 0.

    Returns:
        (N, 4) int64, each in 0 … 2³²−1.
    """
    c0, c1 = counters & _LOW, counters >> 32
    c2, c3 = torch.zeros_like(counters), torch.zeros_like(counters)
    return torch.stack(philox_rounds((seed & _LOW, seed >> 32 & _LOW), (c0, c1, c2, c3)), dim=-1)


def philox_rounds(key: tuple[int, int], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Apply the ten rounds to a 128-bit counter with a 64-bit key, both given as 32-bit words; return four words."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + _WEYL[0] & _LOW, k1 + _WEYL[1] & _LOW
    return c0, c1, c2, c3


def _multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    # The 64-bit product of two 32-bit words. The shift of a negative int64 copies the sign bit: mask it off.
    product = word * _signed(constant)
    if constant >= 2**31:
        product = product + (word << 32)  # _signed took away 2³²
    return product >> 32 & _LOW, product & _LOW


def _signed(constant: int) -> int:
    return constant - 2**32 if constant >= 2**31 else constant


def random_signs(seed: int, start: int, count: int, device: torch.device) -> Tensor:
    """Return entries ``start … start + count`` of an endless sequence of ±1, as int8 (count,).

    Each takes one bit: entry i is bit ``i mod 32`` of word ``i // 32 mod 4`` of counter ``i // 128``.
    """
    signs = torch.empty(count, dtype=torch.int8, device=device)
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    # In tiles, so that the 64-bit words take only a few MiB in addition to the signs.
    for tile in range(start - start % 128, start + count, _TILE):
        stop = min(tile + _TILE, start + count)
        words = philox(seed, torch.arange(tile // 128, -(-stop // 128), device=device))
        low_bytes = words.view(torch.uint8).view(-1, 8)[:, :4].reshape(-1, 1)
        bits = (low_bytes >> shifts & 1).view(torch.int8).flatten()
        first = max(tile, start)
        signs[first - start : stop - start] = bits[first - tile : stop - tile]
    return signs.mul_(2).sub_(1)


def random_normals(seed: int, start: int, count: int, device: torch.device) -> Tensor:
    """Return entries ``start … start + count`` of an endless sequence of standard normal numbers, float32 (count,).

    Computed by the Box-Muller transform in float64, so that devices agree to the rounding of the result.
    """
    first, last = start // 4, -(-(start + count) // 4)
    uniform = (philox(seed, torch.arange(first, last, device=device)).double() + 0.5) / 2**32
    radius = torch.sqrt(-2 * torch.log(uniform[:, 0::2]))
    angle = 2 * math.pi * uniform[:, 1::2]
    pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return pairs.flatten()[start - first * 4 :][:count].float()


def random_integers(seed: int, count: int, bound: int | Tensor, device: torch.device) -> Tensor:
    """Return `count` integers in ``0 … bound − 1``, int64 (count,). The bias is below bound / 2³². `bound` may be (count,)."""
    words = philox(seed, torch.arange(-(-count // 4), device=device)).flatten()[:count]
    return words * bound >> 32


def random_subset(seed: int, count: int, total: int, device: torch.device) -> Tensor:
    """Return `count` different integers in ``0 … total − 1``, sorted, int64 (count,); every subset is equally likely."""
    words = philox(seed, torch.arange(-(-total // 2), device=device)).view(-1, 2)[:total]
    keys = words[:, 0] << 31 ^ words[:, 1]  # 63 bits: two are equal with probability total² / 2⁶⁴
    return keys.argsort(stable=True)[:count].sort().values
