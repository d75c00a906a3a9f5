"""The number of projected dimensions for ``dim: auto``, and which ``dim`` a stored projector had."""

from typing import NamedTuple

TRAIN_BYTES = 2**28
"""Bytes that the features of the training set may occupy under one checkpoint, in float32."""

FEWEST, MOST = 2048, 2**15
"""What k is at least and at most, whatever the number of training samples. `MOST` bounds what targets occupy, however many are
scored later: 131 kB each."""


class Dimensions(NamedTuple):
    """k, and why."""

    k: int
    reason: str


def automatic(n: int, p: int) -> Dimensions:
    """Return k for n training samples and p parameters: as many dimensions as `TRAIN_BYTES` hold, between `FEWEST` and `MOST`; p
    if that is not larger, and then nothing needs to be projected.

    The projection adds noise of about 1/√k to every cosine of two gradients, and a larger k takes no more time to project. Within
    the budget, min(n, k) is at most 8,192, or k is `FEWEST`, so that the solve takes seconds. Neither the number of targets
    nor that of checkpoints matters, because more of both may come later.
    """
    fits = TRAIN_BYTES // (4 * n)
    k = min(max(fits, FEWEST), MOST)
    if p <= k:
        return Dimensions(p, "")
    of = f"k = {k:,} of p = {p:,}"
    if fits > MOST:
        return Dimensions(k, f"{of}: the largest that auto chooses")
    if fits < FEWEST:
        return Dimensions(
            k, f"{of}: the smallest that auto chooses ({4 * n * k / 1e6:,.0f} MB per checkpoint for n = {n:,})"
        )
    return Dimensions(k, f"{of}: {TRAIN_BYTES / 1e6:.0f} MB per checkpoint for n = {n:,} training samples")
