"""A callback for the Trainer of Lightning."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import lightning as L

from trak_lightning.chat.order import RecordedOrder


class AttributionCallback(L.Callback):
    """Save checkpoints at chosen steps, each with the samples that it was trained on.

    `folder` then holds ``step-100.ckpt`` and ``step-100.subset.npy``, which `trak` reads with it, and ``order.npy``, the
    positions of the training samples in the order in which they were drawn. Resumed trainings are not supported.

    Args:
        folder: where to save.
        steps: the steps after which to save; the last is always saved.
    """

    def __init__(self, folder: str | Path, steps: Collection[int] = ()) -> None:
        self.folder = Path(folder)
        self.steps = frozenset(steps)
        self._drawn = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._order = RecordedOrder(trainer.train_dataloader)
        self._drawn, self._saved = 0, 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loader: Any = trainer.train_dataloader
        size = loader.batch_sampler.batch_size * trainer.world_size
        before = trainer.current_epoch * len(loader.batch_sampler.sampler)
        self._drawn = before + min((batch_idx + 1) * size, len(loader.batch_sampler.sampler))
        if trainer.global_step in self.steps and trainer.global_step != self._saved:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self._saved:
            self._save(trainer)
        if trainer.is_global_zero:
            self._order.save_all(self.folder)

    def _save(self, trainer: L.Trainer) -> None:
        path = self.folder / f"step-{trainer.global_step}.ckpt"
        trainer.save_checkpoint(path, weights_only=True)
        self._saved = trainer.global_step
        if trainer.is_global_zero:
            self._order.save(path, self._drawn)
