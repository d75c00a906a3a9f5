"""Models retrained on parts of the training set, of which only the outputs on the targets are kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import numpy.typing as npt

from trak_lightning.data.dataset import AttributionData
from trak_lightning.featurize.fitting import Reference
from trak_lightning.retraining.outputs import Retraining
from trak_lightning.retraining.train import Recipe, model_outputs, train_on_subset
from trak_lightning.run.atomic import atomic_write
from trak_lightning.runtime.progress import progress
from trak_lightning.tasks.base import Task


@dataclass(frozen=True)
class Trainer:
    """Retrains with the user's own model, data and Trainer settings.

    A task that has to be fitted is fitted to the same samples of `train` under every model.
    """

    recipe: Recipe
    datamodule: L.LightningDataModule
    task: Task
    train: AttributionData
    targets: AttributionData

    def retrain(self, retrainings: Sequence[Retraining]) -> None:
        """Train each, and store its subset (s,) and its outputs f(z; θ(S)) of every target z, (m,)."""
        reference = Reference.of(self.task, self.train, len(self.train))
        with progress("retrain", len(retrainings)) as advance:
            for each in retrainings:
                model = train_on_subset(self.recipe, self.datamodule, each.subset, each.seed)[0]
                _store(each.path, each.subset, model_outputs(model, self.task, self.targets, reference))
                del model
                advance(1)


def _store(path: Path, subset: npt.NDArray[np.int64], outputs: npt.NDArray[np.float32]) -> None:
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez(file, subset=subset, outputs=outputs)
