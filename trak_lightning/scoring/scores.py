"""Score files: written whole, read lazily."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from trak_lightning.atomic import atomic_hdf5
from trak_lightning.errors import CorruptFileError, DataError, IncompleteRunError
from trak_lightning.rundir import RunDirectory
from trak_lightning.scoring.base import BLOCK_BYTES, Array, Scoring, chunks
from trak_lightning.scoring.inner_products import InnerProducts
from trak_lightning.scoring.ranking import Ranking, RunningRanking, rank

SCHEMA_VERSION = 1
KEPT = 100
"""How many of the most helpful and most harmful examples of each target are stored beside the matrix."""

TARGETS_AT_ONCE = 1024
"""Targets that are scored in one pass over the training features."""


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
                self.shape: tuple[int, int] = tuple(int(size) for size in file.attrs["shape"])  # type: ignore[assignment]
                """m targets, n training samples."""
                self._offset: int | None = file["scores"].id.get_offset() if "scores" in file else None
                self._kept: int = file["top_indices"].shape[1]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise CorruptFileError(
                f"{self.path} is not a score file: {error}. Delete it and run trak score again."
            ) from error

    @cached_property
    def values(self) -> npt.NDArray[np.float32]:
        """(m targets, n train) scores, read from the file as they are looked at.

        Raises:
            DataError: only the best of each target were kept.
        """
        if self._offset is None:
            raise DataError(
                f"{self.path} holds the {self._kept} best and worst of each target and no matrix. Score again without top."
            )
        return np.memmap(self.path, np.float32, mode="r", offset=self._offset, shape=self.shape)

    def top(self, k: int = 10, *, target: int | None = None) -> Ranking:
        """The k most helpful training samples of every target, or of one; equal scores by lower index."""
        return self._ranking("top", k, target)

    def bottom(self, k: int = 10, *, target: int | None = None) -> Ranking:
        """The k most harmful training samples, most harmful first."""
        return self._ranking("bottom", k, target)

    def effects(self, train: int) -> npt.NDArray[np.float32]:
        """The scores of one training sample for all targets: (m,).

        Raises:
            DataError: no such sample, or only the best of each target were kept.
        """
        if not 0 <= train < self.shape[1]:
            raise DataError(f"train {train} is out of range: {self.path} has training samples 0 … {self.shape[1] - 1}")
        return np.array(self.values[:, train])

    def _ranking(self, which: str, k: int, target: int | None) -> Ranking:
        m, n = self.shape
        if not 1 <= k <= n:
            raise DataError(f"k must lie in 1 … {n}, the number of training samples, got {k}")
        if target is not None and not 0 <= target < m:
            raise DataError(f"target {target} is out of range: {self.path} has targets 0 … {m - 1}")
        rows = slice(None) if target is None else target
        if k <= self._kept:
            with h5py.File(self.path, "r") as file:
                spread = f"{which}_spread"
                return Ranking(
                    file[f"{which}_indices"][rows, :k],
                    file[f"{which}_values"][rows, :k],
                    file[spread][rows, :k] if spread in file else None,
                )
        found = rank(np.atleast_2d(self.values[rows]), which, k)
        return found if target is None else Ranking(found.indices[0], found.values[0])

    def describe(self) -> str:
        """One line for people."""
        m, n = self.shape
        chosen = self.settings["scoring"].get("rule")
        kept = "" if self._offset is not None else f", best {self._kept} kept"
        return f"{m} targets × {n} training samples{kept}" + (f", λ: {chosen}" if chosen else "")


def open_scores(run: RunDirectory, name: str | None = None) -> Scores:
    """A score file of a run; the only one there is if no name is given.

    Raises:
        IncompleteRunError: there is none.
        DataError: there are several, or none of that name.
    """
    found = sorted(path.stem for path in (run.path / "scores").glob("*.h5"))
    if not found:
        raise IncompleteRunError(f"there are no scores in {run.path / 'scores'}. Run trak score first.")
    if name is None and len(found) > 1:
        raise DataError(f"{run.path} has several score files, {', '.join(found)}: choose one with --name")
    if name is not None and name not in found:
        raise DataError(f"{run.path} has no scores named {name!r}; it has {', '.join(found)}")
    return Scores(run.scores(name or found[0]))


def write_scores(path: Path, scoring: Scoring, settings: Mapping[str, Any], *, top: int | None = None) -> Scores:
    """Compute all scores and write them tile by tile; with `top`, only that many of the best and worst of each target.

    Memory is that of one tile and of what is kept for `TARGETS_AT_ONCE` targets. The best are kept with their standard
    errors over checkpoints, where the scorer knows them.

    Raises:
        StorageError: the file could not be written; an older one is unharmed.
    """
    m, n = scoring.num_targets, scoring.num_train
    kept = min(top or KEPT, n)
    with atomic_hdf5(path) as file:
        scores = None if top else file.create_dataset("scores", (m, n), np.float32)
        lists = ("indices", "values") + (("spread",) if isinstance(scoring, InnerProducts) else ())
        for name in lists:
            for which in ("top", "bottom"):
                file.create_dataset(f"{which}_{name}", (m, kept), np.int64 if name == "indices" else np.float32)
        for rows in chunks(m, BLOCK_BYTES // TARGETS_AT_ONCE):
            rankings = {which: RunningRanking(which, kept) for which in ("top", "bottom")}
            column = 0
            for tile, spread in _tiles(scoring, rows):
                if scores is not None:
                    scores[rows.start : rows.stop, column : column + tile.shape[1]] = tile
                for ranking in rankings.values():
                    ranking.add(tile, spread)
                column += tile.shape[1]
            for which, ranking in rankings.items():
                for name in lists:
                    file[f"{which}_{name}"][rows.start : rows.stop] = getattr(ranking.ranking, name)
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["shape"] = (m, n)
        file.attrs["settings"] = json.dumps({**settings, "scoring": scoring.settings})
    return Scores(path)


def _tiles(scoring: Scoring, rows: range) -> Any:
    if isinstance(scoring, InnerProducts):
        pairs = scoring.spread_tiles(rows.start, rows.stop)
    else:
        pairs = ((tile, None) for tile in scoring.tiles(rows.start, rows.stop))  # type: ignore[misc]
    for tile, spread in pairs:
        yield _single(tile), None if spread is None else _single(spread)


def _single(values: Array) -> Array:
    return values.astype(np.float32)
