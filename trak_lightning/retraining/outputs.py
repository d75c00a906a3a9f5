"""The models to retrain, and the files that keep their outputs on the targets. Does not import torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import CorruptFileError, IncompleteRunError
from trak_lightning.retraining.subsets import SubsetPlan
from trak_lightning.run.numpy_files import read_npz, write_npz
from trak_lightning.seeds import derive_seed, fingerprint

REMEDY = "Delete it and run trak evaluate again."


@dataclass(frozen=True)
class Retraining:
    """A model to retrain."""

    path: Path
    """File for its subset (s,) and its outputs (m,)."""
    subset: npt.NDArray[np.int64]
    """Positions (s,) of the training samples to train on."""
    seed: int
    """Seed of initialization and batch order."""
    keep_batches: bool = False
    """Whether to draw the batches from the whole training set and then remove what is not in the subset, so that all models
    of one seed see the other samples in the same batches."""


class Retrain(Protocol):
    """Train models, in one process or several."""

    def __call__(self, plan: SubsetPlan, folder: Path, retrainings: Sequence[Retraining]) -> None:
        """Train and store those models whose files do not exist yet.

        Also called with no models, to compare settings before outputs are reused.

        Args:
            plan: which subsets the models of `folder` have; its recipe is left to the callee.
            folder: where the plan is recorded; the files lie in it or below.
            retrainings: the models that are needed.

        Raises:
            IncompatibleRunError: the models of `folder` were trained with other settings.
        """


def missing(retrainings: Sequence[Retraining]) -> list[Retraining]:
    """Those whose outputs are not stored yet, each file once."""
    return list({each.path: each for each in retrainings if not each.path.exists()}.values())


@dataclass(frozen=True)
class Retrained:
    """Models trained on any subsets that an evaluation asks for, each `repeats` times with different seeds, never twice.

    Outputs are kept in `folder`, one file for each (subset, seed), and averaged over the repeats.
    """

    folder: Path
    plan: SubsetPlan
    num_targets: int
    repeats: int
    retrain: Retrain

    @property
    def num_samples(self) -> int:
        """n, the size of the training set."""
        return self.plan.num_samples

    def outputs(self, subsets: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
        """Outputs f of all targets, averaged over repeats, of models trained on these subsets: (len(subsets), m)."""
        # The same seeds for every subset, so that two models differ by little but their data.
        seeds = [derive_seed(self.plan.seed, "retrained", repeat) % 2**32 for repeat in range(self.repeats)]
        jobs = [
            [Retraining(self.folder / f"{fingerprint([subset.tolist(), seed])}.npz", subset, seed) for seed in seeds]
            for subset in subsets
        ]
        self.retrain(self.plan, self.folder, [job for repeats in jobs for job in repeats])
        found = np.empty((len(subsets), self.num_targets))
        for row, repeats in zip(found, jobs, strict=True):
            row[:] = np.mean([read_model(job.path, self.num_samples, self.num_targets)[1] for job in repeats], axis=0)
        return found

    def without(self, removed: Sequence[npt.ArrayLike]) -> npt.NDArray[np.float64]:
        """As `outputs`, for models trained on all samples except these: (len(removed), m)."""
        everything = np.arange(self.num_samples)
        return self.outputs([np.setdiff1d(everything, np.asarray(each, dtype=np.int64)) for each in removed])


def output_path(folder: Path, model: int) -> Path:
    """File of one retrained model: its ``subset`` (s,) and its ``outputs`` (m,) on the targets."""
    return folder / f"{model:04d}.npz"


def store_outputs(each: Retraining, outputs: npt.NDArray[np.float32]) -> None:
    """Write what `read_model` and `one_stored` read."""
    write_npz(each.path, {"subset": each.subset, "outputs": outputs, "seed": each.seed})


def one_stored(folder: Path, retrainings: Sequence[Retraining]) -> Retraining | None:
    """A stored model that can be trained again: one of `retrainings`, or another one of their folder; None if there is none."""
    found = next((each for each in retrainings if each.path.exists()), None)
    for path in sorted(folder.glob("*.npz")) if found is None else ():
        stored = read_npz(path, "subset", "outputs", remedy=REMEDY)
        if "seed" in stored:  # files of earlier versions have none
            return replace(retrainings[0], path=path, subset=stored["subset"], seed=int(stored["seed"]))
    return found


def stored_outputs(folder: Path) -> dict[Path, npt.NDArray[np.float32]]:
    """The outputs (m,) of all models of a folder, by their files."""
    return {path: read_npz(path, "outputs", remedy=REMEDY)["outputs"] for path in sorted(folder.glob("*.npz"))}


def read_outputs(
    folder: Path, models: int, *, num_samples: int, num_targets: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Read the subsets (S, n), as masks, and the outputs (S, m) of the first `models` retrained models.

    Raises:
        IncompleteRunError: some have not been retrained.
        CorruptFileError: a file is damaged, or belongs to other data.
    """
    paths = [output_path(folder, model) for model in range(models)]
    absent = sum(not path.exists() for path in paths)
    if absent:
        raise IncompleteRunError(
            f"{absent} of {models} models have not been retrained yet in {folder}. Run trak evaluate."
        )
    subsets = np.zeros((models, num_samples), dtype=bool)
    outputs = np.empty((models, num_targets))
    for model, path in enumerate(paths):
        subsets[model], outputs[model] = read_model(path, num_samples, num_targets)
    return subsets, outputs


def read_model(path: Path, num_samples: int, num_targets: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Read the subset (n,) of one retrained model, as a mask, and its outputs (m,).

    Raises:
        CorruptFileError: the file is damaged, or belongs to other data.
    """
    mask, outputs = np.zeros(num_samples, dtype=bool), np.empty(num_targets)
    found = read_npz(path, "subset", "outputs", remedy=REMEDY)
    try:
        mask[found["subset"]] = True
        outputs[:] = found["outputs"]
    except (ValueError, TypeError, IndexError) as error:
        raise CorruptFileError(
            f"{path} does not hold a subset of {num_samples} samples and {num_targets} outputs: {error}. {REMEDY}"
        ) from error
    return mask, outputs
