"""Collect the rows of batches and store them block by block."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from trak_lightning.data.loading import IndexedBatch
from trak_lightning.errors import TrakError
from trak_lightning.featurize.module import Featurizer
from trak_lightning.stores.base import FeatureRows, FeatureSet, concatenate


class BlockWriter(BasePredictionWriter):
    """Collect rows until a block is complete, and store it while the next one is being computed.

    If the process dies, the rows of an incomplete block are computed again. Memory: three blocks.
    """

    def __init__(self, advance: Callable[[int], None], world_size: int) -> None:
        super().__init__("batch")
        self._advance = advance
        self._pending: list[FeatureRows] = []
        self._rows = 0
        self._writing: Future[None] | None = None
        self._computed = torch.zeros(world_size, dtype=torch.int64).share_memory_()

    @property
    def computed(self) -> int:
        """Rows computed so far by this rank and the ranks that it has spawned."""
        return int(self._computed.sum())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_advance": _ignore}  # spawned ranks have no progress bar

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._pool = ThreadPoolExecutor(1, "trak-write")

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        with suppress(TrakError):  # store the complete block, but report the first error
            self._finish()

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: FeatureRows | None,
        batch_indices: Sequence[int] | None,
        batch: IndexedBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        assert isinstance(pl_module, Featurizer)
        if prediction is None:
            return
        feature_set = pl_module.feature_set
        block = int(prediction.index[0]) // feature_set.spec.block_size
        samples = feature_set.spec.block_range(block)
        # The data has grown into this block: its first rows are stored, and only the others were computed.
        if not self._pending and (known := feature_set.known_rows(block)) is not None:
            self._collect(known)
        self._collect(prediction)
        if self._rows == len(samples):
            self._finish()
            rows = concatenate(self._pending)
            self._writing = self._pool.submit(_store, feature_set, block, rows.at(np.argsort(rows.index)))
            self._pending, self._rows = [], 0
        self._computed[trainer.global_rank] += len(prediction)
        self._advance(len(prediction) * trainer.world_size)  # the other ranks have computed as many
        if not self._pending:  # between blocks, so that no computed row is lost
            pl_module.stop.check()

    def _collect(self, rows: FeatureRows) -> None:
        self._pending.append(rows)
        self._rows += len(rows)

    def _finish(self) -> None:
        """Wait until the last complete block is stored.

        Raises:
            StorageError: it could not be stored.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()


def _ignore(count: int) -> None:
    pass


def _store(feature_set: FeatureSet, block: int, rows: FeatureRows) -> None:
    feature_set.write_block(block, rows)
    feature_set.release(block)
