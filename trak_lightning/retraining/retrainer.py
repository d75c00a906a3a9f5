"""Retrain models on parts of the training set, and keep their outputs on the targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trak_lightning.data.dataset import AttributionData
from trak_lightning.data.transfer import to_device
from trak_lightning.errors import OneSampleAtATime
from trak_lightning.extractors.audit import as_outputs
from trak_lightning.featurize.fitting import FitSamples
from trak_lightning.retraining.outputs import Retraining, store_outputs, stored_outputs
from trak_lightning.retraining.repeat import require_repeatable, spread
from trak_lightning.retraining.train import Recipe, train_on_subset
from trak_lightning.runtime.progress import progress
from trak_lightning.runtime.signals import interruptible
from trak_lightning.tasks.base import Task, batch_of


@dataclass(frozen=True)
class Retrainer:
    """Retrain with the user's own model, data and Trainer settings.

    A task that is fitted is fitted to the same samples of `train` under every model.
    """

    recipe: Recipe
    datamodule: L.LightningDataModule
    task: Task
    train: AttributionData
    targets: AttributionData

    def retrain(self, retrainings: Sequence[Retraining]) -> None:
        """Train each model, and store its subset (s,) and its outputs f(z; θ(S)) on all targets z, (m,)."""
        with interruptible() as check, progress("retrain", len(retrainings)) as advance:
            for each in retrainings:
                store_outputs(each, self.outputs(each))
                advance(1)
                check()

    def outputs(self, each: Retraining) -> npt.NDArray[np.float32]:
        """Train a model, and return its outputs f(z; θ(S)) on all targets z, (m,)."""
        reference = FitSamples.of(self.task, self.train, len(self.train))
        model = train_on_subset(self.recipe, self.datamodule, each.subset, each.seed, keep_batches=each.keep_batches)[0]
        return model_outputs(model, self.task, self.targets, reference)

    def require_repeatable(self, each: Retraining, folder: Path) -> None:
        """Train a stored model of `folder` again and compare the outputs.

        Raises:
            IncompatibleRunError: they differ.
        """
        stored = stored_outputs(each.path.parent)
        require_repeatable(
            stored[each.path],
            partial(self.outputs, each),
            spread(list(stored.values())),
            what=f"the outputs of {each.path}",
            remedy=f"delete {folder} to train all its models again",
        )


def model_outputs(
    model: L.LightningModule, task: Task, data: AttributionData, reference: FitSamples | None = None
) -> npt.NDArray[np.float32]:
    """Compute f(z; θ) of every sample, (n,), without gradients; `reference` is for tasks that are fitted."""
    model.eval()

    def load(data: AttributionData, positions: Sequence[int]) -> Any:
        return data.moved(positions, model, model.device)

    if reference is not None:
        task = task.fitted(reference.fit(task, model, load))
    outputs: list[Tensor] = []
    batches = [range(i, min(i + data.batch_size, len(data))) for i in range(0, len(data), data.batch_size)]
    with torch.no_grad():
        for indexed in data.loader(batches):
            size, batch = len(indexed.index), to_device(indexed, data.hooks, model, model.device).batch
            try:
                with batch_of(size):
                    found = as_outputs(task.output(model, batch), size, task)
            except OneSampleAtATime as refusal:
                with batch_of(1):
                    alone = [
                        task.output(model, load(data, [position])).reshape(1) for position in indexed.index.tolist()
                    ]
                found = torch.cat(alone)
                task.require_agreement(refusal.whole, found)
            outputs.append(found.float().cpu())
    values: npt.NDArray[np.float32] = torch.cat(outputs).numpy()
    return values
