"""Which models are to be retrained, and what those that were said of the targets. No torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import CorruptFileError, IncompleteRunError
from trak_lightning.run.numpy_files import read_npz
from trak_lightning.seeds import derive_seed, fingerprint


@dataclass(frozen=True)
class Retraining:
    """A model to be retrained."""

    path: Path
    """Of the file that its subset (s,) and its outputs (m,) are kept in."""
    subset: npt.NDArray[np.int64]
    """Positions (s,) of the training samples it is trained on."""
    seed: int
    """Of its initialisation and batch order."""


Retrain: TypeAlias = Callable[[Sequence[Retraining]], None]
"""Trains models and stores what they say; in one process or several."""


def missing(retrainings: Sequence[Retraining]) -> list[Retraining]:
    """Those whose outputs are not stored yet, each file once."""
    return list({each.path: each for each in retrainings if not each.path.exists()}.values())


@dataclass(frozen=True)
class Retrained:
    """Models on any subsets that an evaluation asks for, each trained once, `repeats` times with different seeds.

    Args:
        folder: where outputs are kept, one file for every (subset, seed).
        num_samples: n of the training set.
        num_targets: m.
        seed: of the run.
        repeats: models whose outputs are averaged.
        retrain: trains those that are missing.
    """

    folder: Path
    num_samples: int
    num_targets: int
    seed: int
    repeats: int
    retrain: Retrain

    def outputs(self, subsets: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
        """f of every target by models trained on these subsets, averaged over repeats: (len(subsets), m)."""
        # The same seeds for every subset: two models then differ by little else than their data.
        seeds = [derive_seed(self.seed, "retrained", repeat) % 2**32 for repeat in range(self.repeats)]
        jobs = [
            [Retraining(self.folder / f"{fingerprint([subset.tolist(), seed])}.npz", subset, seed) for seed in seeds]
            for subset in subsets
        ]
        self.retrain(missing([job for repeats in jobs for job in repeats]))
        found = np.empty((len(subsets), self.num_targets))
        for row, repeats in zip(found, jobs, strict=True):
            row[:] = np.mean([self._read(job.path) for job in repeats], axis=0)
        return found

    def without(self, removed: Sequence[npt.ArrayLike]) -> npt.NDArray[np.float64]:
        """As `outputs`, of models trained on all samples but these: (len(removed), m)."""
        everything = np.arange(self.num_samples)
        return self.outputs([np.setdiff1d(everything, np.asarray(each, dtype=np.int64)) for each in removed])

    def _read(self, path: Path) -> npt.NDArray[np.float64]:
        return read_model(path, self.num_samples, self.num_targets)[1]


def output_path(folder: Path, model: int) -> Path:
    """The file of one retrained model: its ``subset`` (s,) and its ``outputs`` (m,) on the targets."""
    return folder / f"{model:04d}.npz"


def read_outputs(
    folder: Path, models: int, *, num_samples: int, num_targets: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Subsets (S, n) as masks and outputs (S, m) of the first `models` retrained models.

    Raises:
        IncompleteRunError: some have not been retrained yet.
        CorruptFileError: a file holds something else, or belongs to other data.
    """
    paths = [output_path(folder, model) for model in range(models)]
    absent = sum(not path.exists() for path in paths)
    if absent:
        raise IncompleteRunError(f"{absent} of {models} models have yet to be retrained in {folder}")
    subsets = np.zeros((models, num_samples), dtype=bool)
    outputs = np.empty((models, num_targets))
    for model, path in enumerate(paths):
        subsets[model], outputs[model] = read_model(path, num_samples, num_targets)
    return subsets, outputs


def read_model(path: Path, num_samples: int, num_targets: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """The subset (n,) of one retrained model as a mask, and its outputs (m,).

    Raises:
        CorruptFileError: the file holds something else, or belongs to other data.
    """
    mask, outputs = np.zeros(num_samples, dtype=bool), np.empty(num_targets)
    remedy = "Delete it and run trak evaluate again."
    found = read_npz(path, "subset", "outputs", remedy=remedy)
    try:
        mask[found["subset"]] = True
        outputs[:] = found["outputs"]
    except (ValueError, TypeError, IndexError) as error:
        raise CorruptFileError(
            f"{path} does not hold a subset of {num_samples} samples and {num_targets} outputs: {error}. {remedy}"
        ) from error
    return mask, outputs
