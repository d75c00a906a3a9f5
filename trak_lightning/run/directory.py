"""The run directory: its paths, and the record of the checkpoints in it. Needs no torch."""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import CorruptFileError, DataError, IncompatibleRunError, IncompleteRunError
from trak_lightning.run.atomic import atomic_write, sweep
from trak_lightning.run.meaning import Meaning
from trak_lightning.run.numpy_files import read_npy, write_npy

SCHEMA_VERSION = 1
LIBRARIES = ("trak-lightning", "torch", "lightning", "numpy", "h5py")


@dataclass(frozen=True)
class CheckpointRecord:
    """A checkpoint that was featurized: its content id, and where it was read from."""

    id: str
    source: str
    """Relative to the run directory for a file in it, so that this can be moved; else as it was given."""


@dataclass(frozen=True)
class RunRecord:
    """``run.json``."""

    schema_version: int = SCHEMA_VERSION
    checkpoints: tuple[CheckpointRecord, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    """The libraries that last wrote to the run directory, to explain later differences."""
    meaning: Meaning = field(default_factory=Meaning)
    """What the output of the task means."""


class RunDirectory:
    """Paths and record of one run.

    ::

        config.yaml      the resolved configuration
        run.json         schema version, checkpoints, library versions
        checkpoints/     from `trak train`, each with the subset that it was trained on
        subsets/         the training subset of each featurized checkpoint, where it is known
        projections/     what a projector learned from the training set, if it learns
        references/      what a task keeps of the training set under each checkpoint, if anything
        features/        feature sets
        scores/          score files
        sample_lines.json  label and one line of samples, for tables
        evaluation/      outputs of retrained models, and results
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().resolve()

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def features(self) -> Path:
        return self.path / "features"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    def projection(self, checkpoint: str) -> Path:
        """What a projector has learned under a checkpoint."""
        return self.path / "projections" / f"{checkpoint}.npz"

    def reference(self, checkpoint: str) -> Path:
        """What a task keeps of the training set under a checkpoint."""
        return self.path / "references" / f"{checkpoint}.npz"

    @property
    def score_files(self) -> list[Path]:
        """All score files, by name."""
        return sorted((self.path / "scores").glob("*.h5"))

    def scores(self, name: str) -> Path:
        return self.path / "scores" / f"{name}.h5"

    def page(self, name: str) -> Path:
        """The page about the scores of that name: each has its own, so that none replaces another's."""
        return self.path / "report" / f"{name}.html"

    def require_config(self, instead: str) -> None:
        """Refuse a command that needs the data of a run that was made in Python; `instead` is what to call there.

        Raises:
            IncompleteRunError: there is no configuration file.
        """
        if not self.config.exists():
            raise IncompleteRunError(
                f"{self.config} is missing, which says what the data is: trak run and trak featurize write it. For a run made in "
                f"Python, call {instead}."
            )

    def read(self) -> RunRecord:
        """Read the record; it is empty if nothing was recorded yet.

        Raises:
            CorruptFileError: run.json is not what `write` wrote.
            IncompatibleRunError: another schema version wrote it.
        """
        path = self.path / "run.json"
        if not path.exists():
            return RunRecord()
        try:
            found = json.loads(path.read_text())
            schema = found["schema_version"]
            checkpoints = tuple(CheckpointRecord(**entry) for entry in found["checkpoints"])
            versions = dict(found["versions"])
            meaning = Meaning(**found.get("meaning", {}))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(
                f"{path} is not a run record ({type(error).__name__}: {error}). Move the run directory away and start again."
            ) from error
        if schema != SCHEMA_VERSION:
            raise IncompatibleRunError(
                f"{path} has schema version {schema}; this trak_lightning reads version {SCHEMA_VERSION}"
            )
        return RunRecord(schema, checkpoints, versions, meaning)

    def write(self, record: RunRecord) -> None:
        versions = {library: version(library) for library in LIBRARIES}
        with atomic_write(self.path / "run.json") as part:
            part.write_text(json.dumps(asdict(replace(record, versions=versions)), indent=1))

    def register(self, checkpoints: Sequence[CheckpointRecord], meaning: Meaning | None = None) -> None:
        """Record the checkpoints of this run, in order, and what the output means. More checkpoints may be added later; none
        may be left out.

        Raises:
            IncompatibleRunError, DataError: as `require_registrable`.
        """
        sweep(self.path)
        sweep(self.path / "subsets")
        record = self.require_registrable(checkpoints)
        checkpoints = tuple(replace(each, source=self._relative(each.source)) for each in checkpoints)
        changed = replace(record, checkpoints=checkpoints, meaning=meaning or record.meaning)
        if changed != record:
            self.write(changed)

    def require_registrable(self, checkpoints: Sequence[CheckpointRecord]) -> RunRecord:
        """Check that `register` would accept the checkpoints; returns the present record.

        Raises:
            IncompatibleRunError: the run has a checkpoint that is not among these.
            DataError: a checkpoint is given twice.
        """
        for position, checkpoint in enumerate(checkpoints):
            twin = next((other for other in checkpoints[:position] if other.id == checkpoint.id), None)
            if twin:
                raise DataError(
                    f"checkpoints {twin.source} and {checkpoint.source} hold the same weights; give one of them"
                )
        record = self.read()
        given = {checkpoint.id for checkpoint in checkpoints}
        for known in record.checkpoints:
            if known.id not in given:
                raise IncompatibleRunError(
                    f"{self.path} was made with checkpoint {known.id} (from {known.source}), which is not among the "
                    f"checkpoints given now: {', '.join(f'{c.id} (from {c.source})' for c in checkpoints)}. Use another "
                    "run directory, or give the same checkpoints (more may be added)."
                )
        return record

    def places(self, checkpoint: CheckpointRecord) -> list[str]:
        """Where the file of a checkpoint may be, the most likely place first: the run directory may have been moved or copied."""
        source = Path(checkpoint.source)
        inside = [str(path) for path in (self.path / source, self.checkpoints / source.name) if path.exists()]
        return list(dict.fromkeys([*(path for path in inside if self._relative(path) != path), checkpoint.source]))

    def _relative(self, source: str) -> str:
        """The path of a file in the run directory, relative to it; any other source as it is."""
        path = Path(source).expanduser().absolute()
        return str(path.relative_to(self.path)) if path.is_relative_to(self.path) and path.exists() else source

    def require(self) -> None:
        """Refuse a folder that does not exist.

        Raises:
            IncompleteRunError: it does not.
        """
        if not self.path.is_dir():
            raise IncompleteRunError(f"there is no run directory {self.path}")

    def require_checkpoints(self) -> tuple[CheckpointRecord, ...]:
        """The checkpoints featurized so far.

        Raises:
            IncompleteRunError: there are none.
        """
        self.require()
        checkpoints = self.read().checkpoints
        if not checkpoints:
            raise IncompleteRunError(f"nothing has been featurized in {self.path}. Run trak featurize first.")
        return checkpoints

    def discard_results(self) -> None:
        """Delete scores, evaluations and cached factors, which were computed from rows that are about to be replaced, and retrained
        models with their outputs."""
        for path in (
            *self.path.glob("scores/*"),
            *(path for path in self.path.glob("factors/*/*/*") if not path.name.endswith(".part")),
            *(path for path in self.path.glob("evaluation/*") if path.suffix in (".json", ".svg", ".png")),
        ):
            path.unlink(missing_ok=True)
        for folder in self.path.glob("evaluation/*"):
            if folder.is_dir():
                with suppress(FileNotFoundError):  # another process deletes it too
                    shutil.rmtree(folder)

    def subset(self, checkpoint: str) -> Path:
        """The positions of the training samples that a checkpoint was trained on."""
        return self.path / "subsets" / f"{checkpoint}.npy"

    def write_subset(self, checkpoint: str, subset: npt.ArrayLike) -> None:
        """Record the positions of the training samples that a checkpoint was trained on."""
        known = self.read_subset(checkpoint)
        if known is not None and np.array_equal(known, np.asarray(subset)):
            return
        write_npy(self.subset(checkpoint), np.asarray(subset, dtype=np.int64))

    def read_subset(self, checkpoint: str) -> npt.NDArray[np.int64] | None:
        """Read what `write_subset` recorded; None if it recorded nothing."""
        path = self.subset(checkpoint)
        return read_subset(path) if path.exists() else None

    def require_same_subset(self, checkpoint: str, subset: npt.ArrayLike, source: str) -> None:
        """Compare the samples that a checkpoint from `source` was trained on with those recorded, if any.

        Raises:
            IncompatibleRunError: they are others.
        """
        known = self.read_subset(checkpoint)
        if known is not None and set(known.tolist()) != (given := set(np.asarray(subset).tolist())):
            raise IncompatibleRunError(
                f"checkpoint {checkpoint} (from {source}) is recorded as trained on {len(known)} samples, and now "
                f"{len(given)} are given, of which {len(given - set(known.tolist()))} are others. Give the recorded ones; or use "
                f"another run directory; or, if the recorded ones are wrong, delete {self.subset(checkpoint)}, and scores are "
                "computed again."
            )


def read_subset(path: Path) -> npt.NDArray[np.int64]:
    """Read the positions (s,) of a subset of the training samples from a ``.npy`` file.

    Raises:
        CorruptFileError: the file holds anything else.
    """
    subset = read_npy(path, remedy="It should hold the positions of the training samples of a checkpoint.")
    if subset.ndim != 1 or subset.dtype.kind not in "iu":
        raise CorruptFileError(f"{path} must hold integers of shape (s,), found {subset.dtype} {subset.shape}")
    return subset.astype(np.int64)


def read_json(path: Path) -> Any:
    """Read a JSON file of a run directory.

    Raises:
        CorruptFileError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise CorruptFileError(f"{path} is not valid JSON ({error}). Delete it and run the command again.") from None
