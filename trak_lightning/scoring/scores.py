"""Score files: written as a whole, read lazily."""

import hashlib
import json
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, overload

import h5py
import numpy as np
import numpy.typing as npt

from trak_lightning.errors import (
    CorruptFileError,
    DataError,
    IncompleteRunError,
    TerminatedError,
    TrakError,
    is_integer,
    needed_for,
)
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.meaning import Meaning
from trak_lightning.run.same_settings import first_difference
from trak_lightning.runtime.tracebacks import shows_users_frames
from trak_lightning.scoring.base import Array, Scoring, chunks
from trak_lightning.scoring.display import (
    RENDER_IN_PYTHON,
    ShowsSamples,
    figure,
    ranking_html,
    ranking_table,
    ranking_title,
)
from trak_lightning.scoring.mistakes import HALF, Mistakes, PredictsTargets
from trak_lightning.scoring.ranking import Ranking, RunningRanking, merged, rank, signed
from trak_lightning.scoring.score_writer import CHECKSUMS, checksums, shared_file
from trak_lightning.stores.configured import configured

SCHEMA_VERSION = 1
KEPT = 100
"""Number of the most helpful and most harmful samples of each target that are stored in addition to the matrix."""

OUTPUTS = {"output": "target_output", "probability": "target_probability"}
"""What is known of each target, and the dataset of the file that has it."""

TARGETS_AT_ONCE = 1024
"""Largest number of targets that are scored in one pass over the training features."""
TARGETS_BYTES = 2**30
"""Bytes that their features may occupy."""


@dataclass(frozen=True)
class Attribution:
    """The scores of one target, as ``scores[17]`` returns them."""

    scores: "Scores"
    target: int

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """The score of every training sample, (n,)."""
        return self.scores.values[self.target]

    def top(self, k: int = 10) -> Ranking:
        """Return the k most helpful training samples, (k,)."""
        return self.scores.top(k, target=self.target)

    def bottom(self, k: int = 10) -> Ranking:
        """Return the k most harmful training samples, most harmful first, (k,)."""
        return self.scores.bottom(k, target=self.target)

    def show(self, k: int = 10) -> None:
        """Print up to k helpful (positive) and k harmful (negative) training samples, with labels and text if at hand."""
        from rich.console import Console

        train = None if self.scores.samples is None else self.scores.samples[0]
        title, headings = self._title(self.scores.says(self.target)), self.scores.meaning.headings
        Console().print(ranking_table(title, "train", headings, self._sides(k), train, render=RENDER_IN_PYTHON))

    def plot(self, k: int = 5) -> Any:
        """Draw the target with its k most helpful and k most harmful training samples, see `Scores.plot`."""
        return self.scores.plot([self.target], k)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.values, dtype=dtype)

    def __len__(self) -> int:
        return self.scores.shape[1]

    def __repr__(self) -> str:
        helpful, harmful = self._sides(3)
        return (
            f"{self._title()}: {', '.join(f'#{i} {v:+.3g}' for i, v in zip(*helpful[:2], strict=True)) or 'none'} … "
            f"{', '.join(f'#{i} {v:+.3g}' for i, v in zip(*harmful[:2], strict=True)) or 'none'}"
        )

    def _repr_html_(self) -> str:
        train = None if self.scores.samples is None else self.scores.samples[0]
        return ranking_html(self._title(), self.scores.meaning.headings, self._sides(5), train)

    def _title(self, says: str | None = None) -> str:
        shown = None if self.scores.samples is None else self.scores.samples[1].show(self.target)
        return ranking_title(f"Target {self.target}", shown, self.scores.facts(self.target), self.scores.averaged, says)

    def _sides(self, k: int) -> tuple[Ranking, Ranking]:
        k = min(k, len(self))
        return self.scores.sides(k, self.target)


class Scores:
    """A score file.

    A positive score means that having that sample in training raises the target's model output. ``np.asarray(scores)`` is the
    matrix (m, n), ``scores[17]`` the scores of one target.

    Pickled scores are the path of the file, which is opened again where they are read; `samples` stay behind.

    Raises:
        CorruptFileError: the file is not a score file.
    """

    samples: tuple[ShowsSamples, ShowsSamples] | None = None
    """Shows training samples and targets, if the data is at hand: of scores that `TRAK.score` returned."""
    predictor: PredictsTargets | None = None
    """Predicts targets, if models and data are at hand: of scores that `TRAK.score` returned."""

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
                """Number of targets m and of training samples n."""
                offset: int | None = file["scores"].id.get_offset() if "scores" in file else None
                self._kept: int = file["top_indices"].shape[1]
                self._written: str = file.attrs.get(CHECKSUMS, "")
            self._file = _identity(self.path)
            # Mapped now, so that these remain the scores if the file is replaced.
            self._matrix = None if offset is None else np.memmap(self.path, np.float32, "r", offset, self.shape)
        except CorruptFileError:
            raise
        # A damaged file makes h5py raise almost any exception.
        except Exception as error:
            raise CorruptFileError(
                f"{self.path} is not a score file: {error}. Delete it and run trak score again."
            ) from error

    @property
    def has_matrix(self) -> bool:
        """Whether all scores were kept, and not only the best and worst of each target."""
        return self._matrix is not None

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """Scores (m targets, n training samples), mapped: read from the file when they are accessed.

        Raises:
            DataError: only the best and worst of each target were kept.
        """
        if self._matrix is None:
            raise DataError(
                f"{self.path} holds the {self._kept} best and worst of each target, and no matrix. Score again without top."
            )
        return self._matrix

    @property
    def checksum(self) -> str:
        """A hash of all that the file holds; empty for files of earlier versions, which have no checksums."""
        return hashlib.sha256(self._written.encode()).hexdigest()[:32] if self._written else ""

    @property
    def trust(self) -> dict[str, Any] | None:
        """The linear datamodeling score that the checkpoints predict for these scores: ``lds``, its interval ``low`` … ``high``,
        and all of it in words, ``sentence``. None without four checkpoints of recorded subsets, and in files of earlier versions.
        """
        return self.settings.get("trust")

    @property
    def trust_unknown(self) -> str | None:
        """Why `trust` is None, in words."""
        return self.settings.get("trust_unknown")

    @property
    def target_split(self) -> str | None:
        """The name of the targets' features; None in files of earlier versions."""
        return self.settings.get("target_split")

    @property
    def train_split(self) -> str | None:
        """The name of the training samples' features; None in files of earlier versions."""
        return self.settings.get("train_split")

    @property
    def grouped(self) -> bool:
        """Whether these are scores of groups of targets or of differences; not known of files of earlier versions."""
        return bool(self.settings.get("grouped"))

    @property
    def group_names(self) -> list[str] | None:
        """The names of the groups of targets, if they have any."""
        return self.settings.get("request", {}).get("group_names")

    @property
    def meaning(self) -> Meaning:
        """What the output means that the scores are about."""
        return Meaning(**self.settings.get("meaning", {}))

    @overload
    def outputs(self, target: int) -> dict[str, float]: ...
    @overload
    def outputs(self, target: None = None) -> dict[str, Array]: ...
    def outputs(self, target: int | None = None) -> dict[str, float] | dict[str, Array]:
        """What the models predict of one target, averaged over checkpoints: ``output`` f and, if known, ``probability`` of the right
        answer. Of all targets, (m,) each, if none is given, with NaN for a probability that is not known. Empty for groups of targets, and in files of earlier
        versions or of scores that were computed by other means.

        >>> scores.outputs()["probability"].argsort()  # positions (m,), the least probable answer first
        """
        self._require_same_file()
        with h5py.File(self.path, "r") as file:
            if target is None:
                return {name: file[key][:] for name, key in OUTPUTS.items() if key in file}
            found = {name: float(file[key][target]) for name, key in OUTPUTS.items() if key in file}
        return {name: value for name, value in found.items() if not np.isnan(value)}

    def facts(self, target: int) -> list[tuple[str, str]]:
        """The same in words, the most telling first, such as ``("p(label)", "0.231")``."""
        found = self.outputs(target)
        return self.meaning.facts(found["output"], found.get("probability")) if "output" in found else []

    @shows_users_frames
    def mistakes(self) -> Mistakes:
        """Find the targets whose label is not what the models say, worst first, as the report orders them; of a task that predicts numbers,
        all targets, those with the largest error first. Targets that may be mistakes are predicted by all checkpoints.

        >>> wrong = scores.mistakes()
        >>> wrong.indices, wrong[0].label, wrong[0].says  # positions (r,); label and prediction of the worst
        >>> scores[wrong[0].target].show()

        Raises:
            DataError: models and data are not at hand, or these are scores of groups.
            NothingPredictedError: the task predicts neither classes nor numbers.
            StaleRowsError: the stored rows are not those of the model, the task and the data as they are now.
            CheckpointError: a checkpoint cannot be read any more.
        """
        if self.grouped:
            raise DataError(
                f"{self.path} has scores of groups of targets, which models do not predict: ask scores of single targets"
            )
        if self.predictor is None:
            run = RunDirectory(self.path.parent.parent)
            command = f"; or trak top {run.path} --name {self.path.stem}" if run.config.exists() else ""
            raise DataError(
                f"{self.path} does not hold what the models say of targets, and models and data are not at hand: call mistakes() of the scores "
                f"that TRAK.score(…) returns, which computes nothing again{command}"
            )
        self._require_same_file()
        return self.predictor.mistakes()

    def says(self, target: int) -> str | None:
        """What the models say of one target where that is not its label, ``Shirt (88 %)``; None if it is, if the task has not one label of
        some classes, or if models and data are not at hand, or not as they were."""
        if self.predictor is None or target not in self.doubtful():
            return None
        try:
            return self.predictor.says(target)
        except TerminatedError:
            raise
        except TrakError:  # a checkpoint is gone, or data were changed: `mistakes` says so, and the scores can be shown
            return None

    def doubtful(self) -> Array:
        """Positions (d,) of the targets with one label of which another class may be more probable, ascending."""
        self._require_same_file()
        with h5py.File(self.path, "r") as file:
            known = self.meaning.probability == "output" and OUTPUTS["probability"] in file
            return np.flatnonzero(file[OUTPUTS["probability"]][:] <= HALF) if known else np.arange(0)

    @property
    def averaged(self) -> str:
        """What `outputs` are, in words: ``mean over 3 checkpoints``; nothing if there is one, and in files of earlier versions."""
        count = self.settings.get("checkpoints", 1)
        return f"mean over {count} checkpoints" if count > 1 else ""

    def __len__(self) -> int:
        """The number of targets m."""
        return self.shape[0]

    def __getitem__(self, target: int) -> Attribution:
        """Return the scores of one target.

        Raises:
            IndexError: there is no such target.
            TypeError: `target` is no integer.
        """
        try:
            if isinstance(target, bool):  # an entry of a mask
                raise TypeError
            number, m = operator.index(target), len(self)
        except TypeError as error:
            raise TypeError(
                f"scores are indexed with one integer, the target, got {target!r}; np.asarray(scores)[…] takes any index"
            ) from error
        if not -m <= number < m:
            raise IndexError(f"target {number} is out of range: {self.path} has targets 0 … {m - 1}")
        return Attribution(self, number % m)

    def __iter__(self) -> Iterator[Attribution]:
        return (Attribution(self, target) for target in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.values, dtype=dtype) if copy else np.asarray(self.values, dtype=dtype)

    def __copy__(self) -> "Scores":
        return self

    def __deepcopy__(self, memo: Any) -> "Scores":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        self._require_same_file()
        return _opened_again, (str(self.path.absolute()), self._written)

    def __repr__(self) -> str:
        trust = self.trust_unknown if self.trust is None else self.trust["sentence"]
        return f"Scores({str(self.path)!r}): {self.describe()}" + (f"\ntrust {trust}" if trust else "")

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>" + "".join(self[i]._repr_html_() for i in range(min(3, len(self))))

    def to_frame(self, k: int = 10) -> Any:
        """Return up to k helpful (positive score) and k harmful (negative) training samples of every target, most so first, as a
        pandas DataFrame, one row each: target, side, rank, train, score, spread, and labels if the data is at hand. Where outputs
        predict numbers, the sides are ``raises`` and ``lowers``.

        Raises:
            DataError: pandas is not installed.
        """
        with needed_for("to_frame", "pandas"):
            import pandas as pd
        m, k = self.shape[0], min(k, self.shape[1])
        frames = []
        sides = ("raises", "lowers") if self.meaning.number else ("helpful", "harmful")
        for side, ranking in zip(sides, (self.top(k), self.bottom(k)), strict=True):
            spread = np.full((m, k), np.nan) if ranking.spread is None else ranking.spread
            columns = {
                "target": np.repeat(np.arange(m), k),
                "side": side,
                "rank": np.tile(np.arange(1, k + 1), m),
                "train": ranking.indices.ravel(),
                "score": ranking.values.ravel(),
                "spread": spread.ravel(),
            }
            frames.append(pd.DataFrame(columns))
        found = pd.concat(frames)
        frame = found[found.score.where(found.side == sides[0], -found.score) > 0].sort_values(
            ["target", "side", "rank"], ascending=[True, False, True], ignore_index=True
        )
        if self.samples is not None:
            for column, samples in zip(("train", "target"), self.samples, strict=True):
                frame[f"{column}_label"] = [samples.label(index) for index in frame[column].tolist()]
        return frame

    def plot(self, targets: int | Sequence[int] | None = None, k: int = 5) -> Any:
        """Draw one target or some, the first three if None, with their k most helpful and k most harmful training samples, as a matplotlib figure.

        Raises:
            DataError: the data is not at hand, or matplotlib is not installed.
        """
        if self.samples is None:
            raise DataError(
                "there are no samples to draw: plot the scores that TRAK.score returned, which knows the data"
            )
        if targets is None:
            targets = range(min(3, len(self)))
        chosen = [self[target] for target in ([targets] if isinstance(targets, int | np.integer) else targets)]
        if not chosen:
            raise DataError("targets are the positions of those to draw, and none is given")
        sides = [each._sides(k) for each in chosen]
        return figure([each.target for each in chosen], self.meaning.headings, sides, self.samples)

    def verify(self) -> None:
        """Read the whole file and compare it with the checksums stored in it.

        Raises:
            CorruptFileError: it is not what was written.
        """
        try:
            with h5py.File(self.path, "r") as file:
                written, found = json.loads(file.attrs[CHECKSUMS]), checksums(file)
            wrong = first_difference(written, found)
            if wrong is not None:
                raise ValueError(f"the checksum of its {wrong[0]} is {wrong[2]}, and {wrong[1]} was written")
        # A damaged file makes h5py raise almost any exception.
        except Exception as error:
            raise CorruptFileError(
                f"{self.path} is not what was written: {error}. Delete it and run trak score again."
            ) from error

    @shows_users_frames
    def top(self, k: int = 10, *, target: int | None = None) -> Ranking:
        """Return the k most helpful training samples of every target, or of one; ties are ordered by index."""
        return self._ranking("top", k, target)

    @shows_users_frames
    def bottom(self, k: int = 10, *, target: int | None = None) -> Ranking:
        """Return the k most harmful training samples, most harmful first."""
        return self._ranking("bottom", k, target)

    def sides(self, k: int, target: int) -> tuple[Ranking, Ranking]:
        """Return up to k training samples with the most positive scores for a target, and up to k with the most negative ones."""
        return signed(self.top(k, target=target), "top"), signed(self.bottom(k, target=target), "bottom")

    def effects(self, train: int) -> npt.NDArray[np.float32]:
        """Return the scores of one training sample for all targets: (m,).

        Raises:
            DataError: there is no such sample, or only the best and worst of each target were kept.
        """
        if not (is_integer(train) and 0 <= train < self.shape[1]):
            raise DataError(
                f"train {train!r} is out of range: {self.path} has training samples 0 … {self.shape[1] - 1}"
            )
        return np.array(self.values[:, train])

    def _ranking(self, which: str, k: int, target: int | None) -> Ranking:
        m, n = self.shape
        if not (is_integer(k) and 1 <= k <= n):
            raise DataError(f"k must be an integer in 1 … {n}, the number of training samples, got {k!r}")
        if target is not None and not is_integer(target):
            raise DataError(
                f"target must be one integer, or None for all targets, got {target!r}. Index the result for some of them."
            )
        if target is not None and not 0 <= target < m:
            raise DataError(f"target {target} is out of range: {self.path} has targets 0 … {m - 1}")
        rows = slice(None) if target is None else target
        if k <= self._kept:
            self._require_same_file()
            with h5py.File(self.path, "r") as file:
                spread = f"{which}_spread"
                return Ranking(
                    file[f"{which}_indices"][rows, :k],
                    file[f"{which}_values"][rows, :k],
                    file[spread][rows, :k] if spread in file else None,
                )
        found = rank(np.atleast_2d(self.values[rows]), which, k)
        return found if target is None else Ranking(found.indices[0], found.values[0])

    def _require_same_file(self) -> None:
        if _identity(self.path) != self._file:
            raise _replaced(self.path)

    def describe(self) -> str:
        """Describe the scores in one line."""
        m, n = self.shape
        scoring = self.settings["scoring"]
        # Scores that were made elsewhere have a rule and no λ.
        rule = f"λ: {scoring['rule']}" if "regularization" in scoring else scoring.get("rule")
        kept = "" if self.has_matrix else f", best {self._kept} kept"
        return f"{m} targets × {n} training samples{kept}" + (f", {rule}" if rule else "")


def _opened_again(path: str, written: str) -> Scores:
    """Scores that were pickled, which are the name of a file."""
    found = Scores(path)
    if found._written != written:
        raise _replaced(found.path)
    return found


def _replaced(path: Path) -> DataError:
    return DataError(
        f"{path} was replaced or deleted since these scores were opened: the same name was scored with another scorer or "
        "other settings. Give each its own name (TRAK.score(…, name=…), trak score --name)."
    )


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Tell a file from the one that replaces it."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


DEFAULT = "test"
"""The name of the targets that commands score if none is given."""


def open_scores(run: RunDirectory, name: str | None = None) -> Scores:
    """Open a score file of a run; without a name, that of the ``target_split`` of its configuration, of `DEFAULT` targets, or the only one.

    Raises:
        IncompleteRunError: there is no score file.
        DataError: there are several, or none of that name.
    """
    run.require()
    found = [path.stem for path in run.score_files]
    if not found:
        raise IncompleteRunError(f"there are no scores in {run.path / 'scores'}. Run trak score first.")
    if name is None:
        name = next((each for each in (configured(run, "target_split"), DEFAULT) if each in found), None)
    if name is None and len(found) > 1:
        raise DataError(
            f"{run.path} has several score files, {', '.join(found)}: choose one with --name, or name= in Python"
        )
    if name is not None and name not in found:
        raise DataError(
            f"{run.path} has no scores named {name!r}; it has {', '.join(found)}: choose one with --name, or name= in Python"
        )
    return Scores(run.scores(name or found[0]))


def write_scores(
    path: Path,
    scoring: Scoring,
    settings: Mapping[str, Any],
    *,
    top: int | None = None,
    outputs: Mapping[str, Array] | None = None,
) -> Scores:
    """Compute all scores and write them tile by tile; with `top`, only that many of the best and worst of each target. `outputs` are the
    ``output`` and ``probability`` of each target, (m,), see `Scores.outputs`.

    Memory: a few tiles, the best and worst of `TARGETS_AT_ONCE` targets and `TARGETS_BYTES`, and the 64 MiB of the matrix that are written at a
    time. Space on the disk is reserved first. The best and worst are stored with their standard errors over checkpoints,
    if the scorer knows them. Processes that share the work write their parts into one file.

    Raises:
        StorageError: the file could not be written, or the disk is too small; an older file is unharmed.
    """
    m, n = scoring.num_targets, scoring.num_train
    backend, mine, kept = scoring.backend, scoring.share, min(top or KEPT, n)
    with shared_file(path, (m, n), whole=top is None, backend=backend) as file:
        best: dict[str, list[Ranking]] = {"top": [], "bottom": []}
        for rows in chunks(m, max(scoring.target_bytes, TARGETS_BYTES // TARGETS_AT_ONCE), TARGETS_BYTES):
            running = {which: RunningRanking(which, kept, mine.start) for which in best}
            column = mine.start
            for tile in scoring.columns(rows.start, rows.stop, mine):
                file.write(rows.start, column, tile.scores)
                for ranking in running.values():
                    ranking.add(tile.scores, tile.spread)
                column += tile.scores.shape[1]
            for which, ranking in running.items():
                best[which].append(merged(ranking.ranking, which, kept, backend))
        lists = {
            f"{which}_{name}": np.concatenate(parts)
            for which, rankings in best.items()
            for name, parts in zip(Ranking._fields, zip(*rankings, strict=True), strict=True)
            if parts[0] is not None
        }
        lists |= {OUTPUTS[key]: np.asarray(values, np.float32) for key, values in (outputs or {}).items()}
        attributes = {"settings": json.dumps({**settings, "scoring": scoring.settings})}
        file.finish(lists, {"schema_version": SCHEMA_VERSION, "shape": (m, n), **attributes})
    return Scores(path)


def write_matrix(
    run_dir: str | os.PathLike[str], name: str, values: npt.NDArray[np.float32], rule: str, settings: Mapping[str, Any]
) -> Scores:
    """Keep scores (m, n) that were computed by other means than a scorer.

    Args:
        run_dir: the run directory, which need not exist.
        name: of the score file.
        values: positive where having a training sample raises the output of a target.
        rule: how they were computed, in a few words.
        settings: in JSON values, whatever else is to be known of them. ``request`` is what determines them. If they are about
            one recorded training, ``repeated_by`` is the call that repeats it for `trak evaluate`.
    """
    return write_scores(RunDirectory(Path(run_dir)).scores(name), _Known(values, rule), settings)


class _Known(Scoring):
    def __init__(self, values: npt.NDArray[np.float32], rule: str) -> None:
        self.num_targets, self.num_train = values.shape
        self.settings = {"rule": rule}
        self._values = values

    def tiles(self, start: int, stop: int) -> Iterator[npt.NDArray[np.float32]]:
        yield self._values[start:stop]
