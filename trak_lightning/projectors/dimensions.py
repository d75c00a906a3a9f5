"""The number of projected dimensions that the projector `auto` chooses."""

from math import isqrt
from typing import NamedTuple

WORK = 200 * 10**9
"""Multiplications that the Gram matrix of one checkpoint may take, n·k·min(n, k), of which its symmetry saves half: a few seconds of
one core."""

FEWEST, MOST = 2048, 2**17
"""What k is at least and at most, whatever the number of training samples. `MOST` bounds what targets occupy, however many are
scored later: 524 kB each."""


class Dimensions(NamedTuple):
    """k, and why."""

    k: int
    reason: str


def automatic(n: int, p: int) -> Dimensions:
    """Return k for n training samples and p parameters: as many dimensions as `WORK` allows, between `FEWEST` and `MOST`; p if
    that is not larger, and then nothing needs to be projected.

    The projection adds noise of about 1/√k to every cosine of two gradients, and a larger k takes no more time to project.
    The features of the training set occupy 4nk bytes per checkpoint: at most 648 MB where k is larger than `FEWEST`.
    Neither the number of targets nor that of checkpoints matters, because more of both may come later.
    """
    fits = WORK // n**2 if n**3 <= WORK else isqrt(WORK // n)
    k = min(max(fits, FEWEST), MOST)
    if p <= k:
        return Dimensions(
            p,
            f"all p = {p:,} gradient entries are kept, without a projection, each scaled by (mean square)^−¼ (second_moment)",
        )
    limits = {MOST: "the most that auto chooses", FEWEST: "the fewest that auto chooses"}
    size = f"{4 * n * k / 1e6:,.0f} MB per checkpoint for n = {n:,} training samples"
    return Dimensions(k, f"k = {k:,} of p = {p:,}: {limits.get(k, 'what is solved in seconds')}, {size}")
