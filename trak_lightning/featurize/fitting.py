"""Fits of projectors and tasks to the training set, kept in the run directory: one file per checkpoint."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trak_lightning.data.dataset import AttributionData
from trak_lightning.errors import CorruptFileError
from trak_lightning.run.atomic import atomic_create
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.numpy_files import read_npz, write_npz
from trak_lightning.run.same_settings import require_same
from trak_lightning.seeds import derive_seed
from trak_lightning.tasks.base import Task

_FINGERPRINT = "fingerprint.json"


@dataclass(frozen=True)
class FitFile:
    """A ``.npz`` file of float32 arrays, with a fingerprint of the settings that determine them.

    One process writes the file. All processes and resumed runs read it, so that all rows of a run use the same bits.
    """

    path: Path
    fingerprint: Mapping[str, Any]

    def exists(self) -> bool:
        return self.path.exists()

    def save(self, fitted: Mapping[str, Tensor]) -> None:
        arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in fitted.items()}
        arrays[_FINGERPRINT] = np.array(json.dumps(self.fingerprint))
        # Independent jobs may fit at the same time: the first file is kept.
        write_npz(self.path, arrays, atomic_create)

    def load(self) -> dict[str, Tensor]:
        """Read the arrays that `save` wrote.

        Raises:
            CorruptFileError: the file cannot be read.
            IncompatibleRunError: the file was made with other settings.
        """
        remedy = "Delete it and the features made with it."
        arrays = read_npz(self.path, _FINGERPRINT, remedy=remedy)
        try:
            found = json.loads(str(arrays.pop(_FINGERPRINT)))
            fitted = {name: torch.from_numpy(array) for name, array in arrays.items()}
        except (ValueError, TypeError) as error:
            raise CorruptFileError(f"{self.path} is not a valid fit file ({error}). {remedy}") from None
        require_same(found, json.loads(json.dumps(self.fingerprint)), self.path)
        return fitted


@dataclass(frozen=True)
class FitSamples:
    """The training samples that a task is fitted to: drawn at random, as a function of the number of training samples."""

    data: AttributionData
    positions: tuple[int, ...]
    fingerprint: Mapping[str, Any]

    @classmethod
    def of(cls, task: Task, data: AttributionData, num_samples: int | None = None) -> "FitSamples | None":
        """Draw from the first `num_samples` of `data`, or from all; None for a task that needs no fit."""
        if not task.fit_samples:
            return None
        num_samples = num_samples or len(data)
        order = np.random.default_rng(derive_seed("reference", num_samples)).permutation(num_samples)
        positions = tuple(sorted(int(position) for position in order[: task.fit_samples]))
        return cls(data, positions, {"drawn_from": num_samples, "samples": data.digest(positions)})

    def fit(
        self, task: Task, model: nn.Module, load: Callable[[AttributionData, Sequence[int]], Any]
    ) -> dict[str, Tensor]:
        """Fit the task to the samples under the model's current weights; `load` returns a collated batch on the device."""
        size = self.data.batch_size
        batches = (load(self.data, self.positions[at : at + size]) for at in range(0, len(self.positions), size))
        with torch.no_grad():
            return {name: tensor.detach() for name, tensor in task.fit(model, batches).items()}


@dataclass(frozen=True)
class TrainingSet:
    """The samples that a projector and a task are fitted to, whichever split is featurized.

    Args:
        data: the training set.
        reference: the samples that the task is fitted to; None for a task that needs no fit.
    """

    data: AttributionData
    reference: FitSamples | None


@dataclass(frozen=True)
class Fitting:
    """The fits under one checkpoint: what they are made from, and the files that keep them."""

    training: TrainingSet
    run: RunDirectory
    projection: FitFile
    reference: FitFile

    @classmethod
    def of(cls, training: TrainingSet, run: RunDirectory, fingerprint: Mapping[str, Any]) -> "Fitting":
        """The fits for feature sets of this fingerprint. They do not depend on the split."""
        checkpoint = fingerprint["checkpoint"]
        projection = {key: value for key, value in fingerprint.items() if key != "data"}
        reference = {key: fingerprint.get(key) for key in ("checkpoint", "task", "precision", "reference")}
        return cls(
            training,
            run,
            FitFile(run.projection(checkpoint), projection),
            FitFile(run.reference(checkpoint), reference),
        )
