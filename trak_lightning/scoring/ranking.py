"""Find the largest and smallest scores of every target in a stream of scores."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trak_lightning.run.formatting import format_with_error
from trak_lightning.scoring.backend import Backend
from trak_lightning.scoring.base import Array

SHOWN_TARGETS, SHOWN_SAMPLES = 3, 10
"""How much of a ranking its `repr` shows."""

Spread = Callable[[Array, Array], Array]


class Ranking(NamedTuple):
    """Training samples in order, best first: ``indices``, ``values`` and ``spread`` are (m, k), or (k,) for one target."""

    indices: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    spread: npt.NDArray[np.float32] | None = None
    """Standard error of each value over checkpoints; None where it was not computed, NaN with one checkpoint."""

    def __repr__(self) -> str:
        if self.indices.ndim == 1:
            return f"Ranking of {len(self.indices)} samples: {self._line}"
        m, k = self.indices.shape
        rows = [f"target {row}: {self._of(row)._line}" for row in range(min(m, SHOWN_TARGETS))]
        return "\n".join([f"Ranking of {k} samples for each of {m} targets", *rows, *(["…"] if m > len(rows) else [])])

    def written(self) -> Iterator[tuple[str, str]]:
        """Index and score in words, best first, of one target."""
        for place, (index, value) in enumerate(zip(self.indices, self.values, strict=True)):
            yield str(index), format_with_error(value, None if self.spread is None else self.spread[place])

    def _of(self, target: int) -> "Ranking":
        return Ranking(*(None if each is None else each[target] for each in self))  # type: ignore[arg-type]

    @property
    def _line(self) -> str:
        first = [f"#{index} {score}" for index, score in islice(self.written(), SHOWN_SAMPLES)]
        return ", ".join([*first, *(["…"] if len(self.indices) > len(first) else [])]) or "none"


def rank(scores: Array, which: str, k: int, indices: Array | None = None, spread: Array | None = None) -> Ranking:
    """Return the k largest (``top``) or smallest (``bottom``) entries of every row; ties are ordered by index.

    `indices` are the training samples of the columns, ascending for equal scores; 0 … c − 1 if None.
    """
    candidates = _best_columns(scores, which, k)
    keys = np.take_along_axis(scores, candidates, axis=1)
    # A stable sort of the candidates in column order puts the lower of two equal scores first.
    order = np.argsort(-keys if which == "top" else keys, axis=1, kind="stable")
    columns = np.take_along_axis(candidates, order, axis=1)
    found = columns if indices is None else np.take_along_axis(np.broadcast_to(indices, scores.shape), columns, axis=1)
    return Ranking(
        found.astype(np.int64),
        np.take_along_axis(scores, columns, axis=1).astype(np.float32),
        None if spread is None else np.take_along_axis(spread, columns, axis=1).astype(np.float32),
    )


def signed(ranking: Ranking, which: str) -> Ranking:
    """Keep the positive scores of a ranking of one target (``top``), or the negative ones (``bottom``); there may be none."""
    kept = ranking.values > 0 if which == "top" else ranking.values < 0
    spread = None if ranking.spread is None else ranking.spread[kept]
    return Ranking(ranking.indices[kept], ranking.values[kept], spread)


class RunningRanking:
    """The k best entries of rows that arrive in blocks of columns: O(k) memory per row.

    Once k entries are known, only entries that are better than the worst of them matter. These are few; they are set aside
    and merged when there are many.

    Args:
        which: ``top`` or ``bottom``.
        k: number of entries to keep per row.
        first: index of the first column.
    """

    def __init__(self, which: str, k: int, first: int = 0) -> None:
        self._which = which
        self._k = k
        self._seen = first
        # Indices, values and, if known, spread: in the order of columns, sorted only on request.
        self._best: list[Array] = []
        self._last = np.empty((0, 1))
        self._aside: list[list[Array]] = []

    def add(self, scores: Array, spread: Spread | None = None) -> None:
        """Add the next columns (b, c), with a function that returns their spread at (rows, columns)."""
        b, c = scores.shape
        if not self._best or self._best[0].shape[1] < self._k:
            columns = _best_columns(scores, self._which, min(self._k, c))
            rows = np.repeat(np.arange(b), columns.shape[1])
            self._merge(
                [found.reshape(columns.shape) for found in self._entries(scores, spread, rows, columns.ravel())]
            )
        else:
            better = scores > self._last if self._which == "top" else scores < self._last
            # On a flat array, numpy finds the few true entries in a tenth of the time; divmod would take four times as long.
            places = np.flatnonzero(better)
            rows = places // c
            self._aside.append([rows, *self._entries(scores, spread, rows, places - rows * c)])
            if sum(len(rows) for rows, *_ in self._aside) > self._best[0].size:
                self._merge_aside()
        self._seen += c

    @property
    def ranking(self) -> Ranking:
        if not self._best:
            raise ValueError("no columns were added")
        self._merge_aside()
        indices, values, *spread = self._best
        return rank(values, self._which, values.shape[1], indices, *spread)

    def _entries(self, scores: Array, spread: Spread | None, rows: Array, columns: Array) -> list[Array]:
        found = [columns + self._seen, scores[rows, columns]]
        return found if spread is None else [*found, spread(rows, columns)]

    def _merge_aside(self) -> None:
        if not self._aside:
            return
        rows, *entries = [np.concatenate(each) for each in zip(*self._aside, strict=True)]
        self._aside = []
        if not len(rows):
            return
        order = np.argsort(rows, kind="stable")  # within a row, indices still ascend
        counts = np.bincount(rows, minlength=len(self._last))
        places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        side_by_side = []
        for each, filling in zip(entries, (-1, worst(self._which), np.nan), strict=False):
            out = np.full((len(counts), int(counts.max())), filling, each.dtype)
            out[rows[order], places] = each[order]
            side_by_side.append(out)
        self._merge(side_by_side)

    def _merge(self, entries: list[Array]) -> None:
        """Merge entries (b, c) of columns after all those seen so far."""
        if self._best:
            both = [np.concatenate(pair, axis=1) for pair in zip(self._best, entries, strict=True)]
            columns = _best_columns(both[1], self._which, min(self._k, both[1].shape[1]))
            entries = [np.take_along_axis(each, columns, axis=1) for each in both]
        self._best = entries
        values = entries[1]
        self._last = (values.min if self._which == "top" else values.max)(axis=1, keepdims=True)


def merged(mine: Ranking, which: str, k: int, backend: Backend) -> Ranking:
    """Return the best of what all processes found among their own columns; columns ascend with the rank."""

    def everyones(found: Array, filling: float) -> Array:
        missing = k - found.shape[1]
        return np.concatenate(backend.gather(np.pad(found, ((0, 0), (0, missing)), constant_values=filling)), axis=1)

    spread = None if mine.spread is None else everyones(mine.spread, np.nan)
    return rank(everyones(mine.values, worst(which)), which, k, everyones(mine.indices, -1), spread)


def worst(which: str) -> float:
    """Return the value that is worse than any score."""
    return -np.inf if which == "top" else np.inf


def _best_columns(scores: Array, which: str, k: int) -> Array:
    """Return the columns of the k best scores of each row, ascending: (b, k); among ties, those further left."""
    if k >= scores.shape[1]:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    keys = -scores if which == "top" else scores
    limit = np.partition(keys, k - 1, axis=1)[:, k - 1 : k]
    chosen = keys <= limit
    if np.count_nonzero(chosen) > k * len(scores):  # some of the tied ones must go
        equal = keys == limit
        chosen &= ~equal
        chosen |= equal & (np.cumsum(equal, axis=1) <= k - chosen.sum(1, keepdims=True))
    found: Array = (np.flatnonzero(chosen) % scores.shape[1]).reshape(len(scores), k)
    return found
