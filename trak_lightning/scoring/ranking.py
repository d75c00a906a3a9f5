"""The largest and smallest scores of every target, found while the scores stream past."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trak_lightning.scoring.base import Array
from trak_lightning.scoring.compute import Compute

Spread = Callable[[Array, Array], Array]


class Ranking(NamedTuple):
    """Training samples in order, best first: ``indices``, ``values`` and ``spread`` are (m, k), or (k,) for one target."""

    indices: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    spread: npt.NDArray[np.float32] | None = None
    """Standard error of each value over checkpoints; None where it was not computed, NaN with one checkpoint."""


def rank(scores: Array, which: str, k: int, indices: Array | None = None, spread: Array | None = None) -> Ranking:
    """The k largest (``top``) or smallest (``bottom``) entries of every row; equal ones by lower index.

    `indices` are the training samples that the columns belong to, ascending for equal scores; 0 … c − 1 if None.
    """
    keys = -scores if which == "top" else scores
    # A stable sort of the candidates in column order puts the lower of two equal scores first.
    candidates = np.sort(_smallest(keys, k), axis=1)
    order = np.argsort(np.take_along_axis(keys, candidates, axis=1), axis=1, kind="stable")
    columns = np.take_along_axis(candidates, order, axis=1)
    found = columns if indices is None else np.take_along_axis(np.broadcast_to(indices, scores.shape), columns, axis=1)
    return Ranking(
        found.astype(np.int64),
        np.take_along_axis(scores, columns, axis=1).astype(np.float32),
        None if spread is None else np.take_along_axis(spread, columns, axis=1).astype(np.float32),
    )


class RunningRanking:
    """The k best entries of rows that arrive column block by column block: O(k) memory a row.

    Once k are known, an entry is only looked at if it is better than the last of them, which few are: those are put aside
    and merged when there are many.

    Args:
        which: ``top`` or ``bottom``.
        k: how many.
        first: index of the first column.
    """

    def __init__(self, which: str, k: int, first: int = 0) -> None:
        self._which = which
        self._k = k
        self._seen = first
        self._best: Ranking | None = None
        self._aside: list[tuple[Array, Array, Array, Array | None]] = []

    def add(self, scores: Array, spread: Spread | None = None) -> None:
        """The next columns (b, c), with the function that knows their spread at (rows, columns)."""
        best = self._best
        if best is None or best.values.shape[1] < self._k:
            self._merge(*self._all(scores, spread))
        else:
            last = best.values[:, -1:]
            rows, columns = np.nonzero(scores > last if self._which == "top" else scores < last)
            if len(rows):
                errors = None if spread is None else spread(rows, columns)
                self._aside.append((rows, columns + self._seen, scores[rows, columns], errors))
            if sum(len(aside[0]) for aside in self._aside) > best.values.size:
                self._merge_aside()
        self._seen += scores.shape[1]

    @property
    def ranking(self) -> Ranking:
        self._merge_aside()
        if self._best is None:
            raise ValueError("no columns were added")
        return self._best

    def _all(self, scores: Array, spread: Spread | None) -> tuple[Array, Array, Array | None]:
        """The best of the columns: indices, values and spread."""
        found = rank(scores, self._which, min(self._k, scores.shape[1]))
        if spread is None:
            return found.indices + self._seen, found.values, None
        rows = np.repeat(np.arange(len(scores)), found.indices.shape[1])
        return found.indices + self._seen, found.values, spread(rows, found.indices.ravel()).reshape(found.values.shape)

    def _merge_aside(self) -> None:
        if not self._aside or self._best is None:
            return
        rows, indices, values = (np.concatenate([aside[part] for aside in self._aside]) for part in range(3))
        errors = [aside[3] for aside in self._aside if aside[3] is not None]
        self._aside = []
        order = np.argsort(rows, kind="stable")  # within a row, indices still ascend
        counts = np.bincount(rows, minlength=len(self._best.values))
        places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)

        def side_by_side(given: Array, filling: float) -> Array:
            out = np.full((len(counts), int(counts.max())), filling, given.dtype)
            out[rows[order], places] = given[order]
            return out

        self._merge(
            side_by_side(indices, -1),
            side_by_side(values, worst(self._which)),
            side_by_side(np.concatenate(errors), np.nan) if errors else None,
        )

    def _merge(self, indices: Array, values: Array, spread: Array | None) -> None:
        """Take in entries (b, c) that come after all seen so far."""
        if (best := self._best) is not None:
            values = np.concatenate([best.values, values], axis=1)
            indices = np.concatenate([best.indices, indices], axis=1)
            spread = None if spread is None or best.spread is None else np.concatenate([best.spread, spread], axis=1)
        self._best = rank(values, self._which, min(self._k, values.shape[1]), indices, spread)


def merged(mine: Ranking, which: str, k: int, compute: Compute) -> Ranking:
    """The best of what all processes found, each among its own columns: ranks hold columns in ascending order."""

    def everyones(found: Array, filling: float) -> Array:
        missing = k - found.shape[1]
        return np.concatenate(compute.gather(np.pad(found, ((0, 0), (0, missing)), constant_values=filling)), axis=1)

    spread = None if mine.spread is None else everyones(mine.spread, np.nan)
    return rank(everyones(mine.values, worst(which)), which, k, everyones(mine.indices, -1), spread)


def worst(which: str) -> float:
    """What no score is worse than."""
    return -np.inf if which == "top" else np.inf


def _smallest(keys: Array, k: int) -> Array:
    """Columns of the k smallest keys of each row, in any order; of equal keys those further left."""
    if k >= keys.shape[1]:
        return np.broadcast_to(np.arange(keys.shape[1]), keys.shape)
    limit = np.partition(keys, k - 1, axis=1)[:, k - 1 : k]
    below, equal = keys < limit, keys == limit
    room = k - below.sum(1, keepdims=True)
    chosen = below | (equal & (np.cumsum(equal, axis=1) <= room))
    return np.nonzero(chosen)[1].reshape(len(keys), k)
