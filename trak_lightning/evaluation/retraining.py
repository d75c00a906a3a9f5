"""Models retrained on random subsets, of which only the outputs on the targets are kept."""

from pathlib import Path

import lightning as L
import numpy as np

from trak_lightning.atomic import atomic_write
from trak_lightning.data import AttributionData
from trak_lightning.ensemble import Recipe, model_outputs, train_on_subset
from trak_lightning.evaluation.outputs import output_path
from trak_lightning.fitting import Reference
from trak_lightning.progress import progress
from trak_lightning.subsets import SubsetPlan
from trak_lightning.tasks.base import Task


def retrain(
    recipe: Recipe,
    datamodule: L.LightningDataModule,
    task: Task,
    train: AttributionData,
    targets: AttributionData,
    plan: SubsetPlan,
    models: int,
    folder: Path,
) -> int:
    """Retrain the models whose outputs are not in `folder` yet, and store f(z; θ(S_j)) of every target z.

    A task that has to be fitted is fitted to the same samples of `train` under every model.

    Returns:
        How many were retrained now.

    Raises:
        IncompatibleRunError: the folder holds outputs of models trained otherwise.
    """
    plan.record(folder)
    reference = Reference.of(task, train, len(train))
    missing = [model for model in range(models) if not output_path(folder, model).exists()]
    with progress("retrain", len(missing)) as advance:
        for member in missing:
            subset = plan.subset(member)
            model, _ = train_on_subset(recipe, datamodule, subset, plan.training_seed(member))
            outputs = model_outputs(model, task, targets, reference)
            with atomic_write(output_path(folder, member)) as part, part.open("wb") as file:
                np.savez(file, subset=subset, outputs=outputs)
            advance(1)
    return len(missing)
