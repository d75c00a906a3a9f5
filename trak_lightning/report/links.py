"""Which targets does a training sample help and harm?"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from trak_lightning.scoring.scores import Scores

TARGETS = 5
"""Number of targets named on either side."""

MOST_BYTES = 2**31
"""Size of the largest score matrix that is read for this."""


class Linked(NamedTuple):
    """A target, and the score of the training sample for it."""

    target: int
    score: float
    label: str | None


class Effects(NamedTuple):
    """The targets whose scores are most positive and most negative."""

    helps: list[Linked]
    harms: list[Linked]


def effects(scores: Scores, samples: Iterable[int], label: Callable[[int], str | None]) -> dict[int, Effects]:
    """Find the targets that the training samples at positions `samples` help and harm most; nothing if there is no matrix, or a
    very large one."""
    positions = sorted(set(samples))
    m, n = scores.shape
    if not scores.has_matrix or 4 * m * n > MOST_BYTES:
        return {}
    found = np.stack([scores.values[row, positions] for row in range(m)])
    order = np.argsort(-found, axis=0, kind="stable")
    named = {}
    for column, position in enumerate(positions):
        ends = order[:TARGETS, column], order[::-1][:TARGETS, column]
        helps, harms = (
            [Linked(int(t), float(found[t, column]), label(int(t))) for t in end if sign * found[t, column] > 0]
            for sign, end in zip((1, -1), ends, strict=True)
        )
        named[position] = Effects(helps, harms)
    return named
