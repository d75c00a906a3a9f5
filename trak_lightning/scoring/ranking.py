"""The largest and smallest scores of every target, found while the scores stream past."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trak_lightning.scoring.base import Array


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
    """The k best entries of rows that arrive column block by column block: O(k) memory a row."""

    def __init__(self, which: str, k: int) -> None:
        self._which = which
        self._k = k
        self._seen = 0
        self._best: Ranking | None = None

    def add(self, scores: Array, spread: Array | None = None) -> None:
        """The next columns (b, c), with their spread."""
        found = rank(scores, self._which, min(self._k, scores.shape[1]), None, spread)
        found = found._replace(indices=found.indices + self._seen)
        self._seen += scores.shape[1]
        if self._best is not None:
            old = self._best
            both = np.concatenate([old.values, found.values], axis=1)
            indices = np.concatenate([old.indices, found.indices], axis=1)
            spreads = None if spread is None else np.concatenate([old.spread, found.spread], axis=1)
            found = rank(both, self._which, min(self._k, both.shape[1]), indices, spreads)
        self._best = found

    @property
    def ranking(self) -> Ranking:
        if self._best is None:
            raise ValueError("no columns were added")
        return self._best


def _smallest(keys: Array, k: int) -> Array:
    """Columns of the k smallest keys of each row, in any order; of equal keys those further left."""
    if k >= keys.shape[1]:
        return np.broadcast_to(np.arange(keys.shape[1]), keys.shape)
    limit = np.partition(keys, k - 1, axis=1)[:, k - 1 : k]
    below, equal = keys < limit, keys == limit
    room = k - below.sum(1, keepdims=True)
    chosen = below | (equal & (np.cumsum(equal, axis=1) <= room))
    return np.nonzero(chosen)[1].reshape(len(keys), k)
