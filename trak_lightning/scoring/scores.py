"""Score files: written whole, read lazily."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from trak_lightning.atomic import atomic_hdf5
from trak_lightning.errors import CorruptFileError, DataError
from trak_lightning.scoring.base import Array, Scoring

SCHEMA_VERSION = 1
KEPT = 100
"""How many of the most helpful and most harmful examples of each target are stored beside the matrix."""


class Ranking(NamedTuple):
    """Training samples in order, best first: ``indices`` and ``values`` are (m, k), or (k,) for one target."""

    indices: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]


class Scores:
    """A score file.

    Positive: having that training example in training raises the target's model output.

    Raises:
        CorruptFileError: the file is not a score file of ours.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with h5py.File(self.path, "r") as file:
                if file.attrs["schema_version"] != SCHEMA_VERSION:
                    raise CorruptFileError(
                        f"{self.path} has schema version {file.attrs['schema_version']}; this trak_lightning reads "
                        f"version {SCHEMA_VERSION}"
                    )
                self.settings: dict[str, Any] = json.loads(file.attrs["settings"])
                self._shape: tuple[int, int] = file["scores"].shape
                self._offset: int = file["scores"].id.get_offset()
                self._kept: int = file["top_indices"].shape[1]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise CorruptFileError(
                f"{self.path} is not a score file: {error}. Delete it and run trak score again."
            ) from error

    @cached_property
    def values(self) -> npt.NDArray[np.float32]:
        """(m targets, n train) scores, read from the file as they are looked at."""
        return np.memmap(self.path, np.float32, mode="r", offset=self._offset, shape=self._shape)

    def top(self, k: int = 10, *, target: int | None = None) -> Ranking:
        """The k most helpful training samples of every target, or of one; equal scores by lower index."""
        return self._ranking("top", k, target)

    def bottom(self, k: int = 10, *, target: int | None = None) -> Ranking:
        """The k most harmful training samples, most harmful first."""
        return self._ranking("bottom", k, target)

    def _ranking(self, which: str, k: int, target: int | None) -> Ranking:
        m, n = self._shape
        if not 1 <= k <= n:
            raise DataError(f"k must lie in 1 … {n}, the number of training samples, got {k}")
        if target is not None and not 0 <= target < m:
            raise DataError(f"target {target} is out of range: {self.path} has targets 0 … {m - 1}")
        rows = slice(None) if target is None else target
        if k <= self._kept:
            with h5py.File(self.path, "r") as file:
                return Ranking(file[f"{which}_indices"][rows, :k], file[f"{which}_values"][rows, :k])
        found = rank(np.atleast_2d(self.values[rows]), which, k)
        return found if target is None else Ranking(found.indices[0], found.values[0])

    def describe(self) -> str:
        """One line for people."""
        m, n = self._shape
        chosen = self.settings["scoring"].get("rule")
        return f"{m} targets × {n} training samples" + (f", λ: {chosen}" if chosen else "")


def write_scores(path: Path, scoring: Scoring, settings: Mapping[str, Any]) -> Scores:
    """Compute all scores and write them; memory stays that of one block of rows.

    Raises:
        StorageError: the file could not be written; an older one is unharmed.
    """
    m, n = scoring.num_targets, scoring.num_train
    kept = min(KEPT, n)
    with atomic_hdf5(path) as file:
        scores = file.create_dataset("scores", (m, n), np.float32)
        lists = {
            name: (
                file.create_dataset(f"{name}_indices", (m, kept), np.int64),
                file.create_dataset(f"{name}_values", (m, kept), np.float32),
            )
            for name in ("top", "bottom")
        }
        start = 0
        for block in scoring.blocks():
            rows = slice(start, start + len(block))
            scores[rows] = block
            for name, (indices, values) in lists.items():
                indices[rows], values[rows] = rank(block.astype(np.float32), name, kept)
            start += len(block)
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["settings"] = json.dumps({**settings, "scoring": scoring.settings})
    return Scores(path)


def rank(scores: Array, which: str, k: int) -> Ranking:
    """The k largest (``top``) or smallest (``bottom``) entries of every row."""
    keys = -scores if which == "top" else scores
    # A stable sort of the candidates in index order puts the lower of two equal scores first.
    candidates = np.sort(np.argpartition(keys, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(np.take_along_axis(keys, candidates, axis=1), axis=1, kind="stable")
    indices = np.take_along_axis(candidates, order, axis=1)
    return Ranking(indices.astype(np.int64), np.take_along_axis(scores, indices, axis=1).astype(np.float32))
