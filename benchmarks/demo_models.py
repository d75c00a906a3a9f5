"""Models of trak_lightning_demos, trained as its configuration files say, for the benchmarks of each modality."""

from collections.abc import Callable
from pathlib import Path

import lightning as L

from trak_lightning.retraining.subsets import SubsetPlan
from trak_lightning.retraining.train import Recipe, train_ensemble
from trak_lightning.runtime.lightning import quiet_lightning


def recipe(model: Callable[[], L.LightningModule], epochs: int) -> Recipe:
    """Fresh models of this kind, each with a Trainer."""

    def fresh(seed: int) -> tuple[L.LightningModule, L.Trainer]:
        with quiet_lightning():
            L.seed_everything(seed, verbose=False)
            return model(), L.Trainer(
                accelerator="cpu",
                max_epochs=epochs,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )

    return fresh


def checkpoints(
    fresh: Recipe, data: L.LightningDataModule, size: int, fraction: float, folder: Path, seed: int = 0
) -> list[Path]:
    """Train what is missing: `size` models, each on its own random part of the training set."""
    plan = SubsetPlan("ensemble", len(data.train_dataloader().dataset), fraction, seed)
    return train_ensemble(fresh, data, plan, size, folder)[0]
