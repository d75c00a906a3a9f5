"""The LightningModule that joins task, extractor and projector, and the callback that writes its rows, block by block."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.core.hooks import DataHooks
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trak_lightning.data import AttributionData, IndexedBatch
from trak_lightning.errors import NonFiniteGradientError, SampleDependenceError, TerminatedError
from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.gradients import ParameterLayout
from trak_lightning.projectors.base import Projection, Projector
from trak_lightning.stores.base import FeatureRows, FeatureSet, concatenate
from trak_lightning.stores.claims import ClaimedBlocks
from trak_lightning.tasks.base import Task


class Featurizer(L.LightningModule):
    """Computes the features of the missing blocks of one feature set, under ``Trainer.predict``.

    Whole blocks go to ranks, so that the bits of a row do not depend on the number of ranks. Each rank begins at another
    place of the list of missing blocks and claims a block when it comes to it; so do other jobs that fill the same set.

    Args:
        model: the user's model with the checkpoint's weights, in eval mode.
        projector: makes P from (seed, checkpoint, parameter name).
        data: the samples of the split.
        feature_set: where rows go; decides the batches.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        extractor: GradientExtractor,
        projector: Projector,
        layout: ParameterLayout,
        data: AttributionData,
        feature_set: FeatureSet,
        *,
        seed: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.feature_set = feature_set
        self._task = task
        self._extractor = extractor
        self._projector = projector
        self._layout = layout
        self._data = data
        self._seed = seed
        self._projection: Projection | None = None
        self.plan: ClaimedBlocks | None = None

    def setup(self, stage: str) -> None:
        # Gradients cannot be had under inference mode, and in on_predict_start it is too late to leave it.
        self.trainer.predict_loop.inference_mode = False

    def predict_dataloader(self) -> DataLoader:
        # Rank 0's list of blocks, lest a block finished in between is missing for some ranks only.
        missing = self.trainer.strategy.broadcast(self.feature_set.missing_blocks())
        first = len(missing) * self.trainer.global_rank // self.trainer.world_size
        self.plan = ClaimedBlocks(self.feature_set, missing[first:] + missing[:first])
        return self._data.loader(self.plan, pin_memory=self.device.type == "cuda")

    def transfer_batch_to_device(self, batch: IndexedBatch, device: torch.device, dataloader_idx: int) -> IndexedBatch:
        return to_device(batch, self._data.hooks, self.model, device)

    def predict_step(self, indexed: IndexedBatch, batch_idx: int, dataloader_idx: int = 0) -> FeatureRows:
        rows = self._featurize(indexed)
        if batch_idx == 0:
            self._check_independence(indexed.index, rows)
        return rows

    def _featurize(self, indexed: IndexedBatch) -> FeatureRows:
        projection = self._bound_projection()
        features = projection.zeros(len(indexed.index), _accumulator_dtype(self.model))
        with torch.enable_grad():
            output = self._extractor.extract(
                self.model, self._task, indexed.batch, self._layout, lambda block: projection.add(block, features)
            )
        with torch.no_grad():
            loss_weight = self._task.loss_weight(self.model, indexed.batch, output)
            curvature = self._task.curvature(self.model, indexed.batch, output)
        columns = {"output": output, "loss weight": loss_weight, "gradient": features, "curvature": curvature}
        for name, column in columns.items():
            _require_finite(name, column, indexed.index)
        return FeatureRows(
            index=indexed.index.numpy(),
            features=_numpy(features),
            output=_numpy(output),
            loss_weight=_numpy(loss_weight),
            curvature=_numpy(curvature),
        )

    def _bound_projection(self) -> Projection:
        if self._projection is None:
            self._projection = Projection(
                self._projector,
                self._layout,
                seed=self._seed,
                checkpoint=self.feature_set.spec.checkpoint,
                device=self.device,
            )
        return self._projection

    def _check_independence(self, index: Tensor, rows: FeatureRows) -> None:
        """Compare the first and last sample of a batch with the same samples alone."""
        tolerance = 1e-2 if self.trainer.precision in ("32-true", "64-true") else 0.3
        for position in sorted({0, len(index) - 1}):
            sample = index[position : position + 1]
            batch = IndexedBatch(sample, self._data.batch(sample.tolist()))
            batch = to_device(
                self.trainer.precision_plugin.convert_input(batch), self._data.hooks, self.model, self.device
            )
            alone = self._featurize(batch).features[0]
            within = rows.features[position]
            difference = np.linalg.norm(alone - within) / max(np.linalg.norm(alone), np.finfo(np.float32).tiny)
            if difference > tolerance:
                raise SampleDependenceError(
                    f"the gradient of sample {int(sample)} alone differs by {difference:.1%} from its gradient in a batch of "
                    f"{len(index)}, so attributions would depend on the batch. Likely causes: random layers that ignore "
                    "model.eval() (F.dropout without training=self.training), batch statistics, a model output that "
                    "mixes samples, or padding that is not masked."
                )


class BlockWriter(BasePredictionWriter):
    """Collects rows until a block is whole, and stores it while the next one is being computed.

    What is not whole when the process dies is done again. Memory: three blocks.
    """

    def __init__(self, advance: Callable[[int], None]) -> None:
        super().__init__("batch")
        self._advance = advance
        self._pending: list[FeatureRows] = []
        self._pool = ThreadPoolExecutor(1, "trak-write")
        self._writing: Future[None] | None = None
        self.computed = 0
        """Rows computed so far by this rank."""

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: FeatureRows,
        batch_indices: Sequence[int] | None,
        batch: IndexedBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        assert isinstance(pl_module, Featurizer)
        feature_set = pl_module.feature_set
        block = int(prediction.index[0]) // feature_set.spec.block_size
        samples = feature_set.spec.block_range(block)
        if not self._pending and prediction.index[0] > samples.start:
            known = feature_set.known_rows(block)
            assert known is not None
            self._pending.append(known)
        self._pending.append(prediction)
        if sum(map(len, self._pending)) == len(samples):
            self.finish()
            self._writing = self._pool.submit(_store, feature_set, block, concatenate(self._pending))
            self._pending = []
        self.computed += len(prediction)
        self._advance(len(prediction) * trainer.world_size)
        # Lightning only takes note of the signal; its own loops look at it while fitting.
        if trainer.received_sigterm:
            raise TerminatedError("SIGTERM received; what is stored is kept, run the same command to go on")

    def finish(self) -> None:
        """Wait until the last whole block is stored.

        Raises:
            StorageError: it could not be.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()


def _store(feature_set: FeatureSet, block: int, rows: FeatureRows) -> None:
    feature_set.write_block(block, rows)
    feature_set.release(block)


def to_device(batch: IndexedBatch, datamodule: Any, model: nn.Module, device: torch.device) -> IndexedBatch:
    """Move a batch as training did: with the hooks of the user's DataModule, else of their LightningModule."""

    def hook(name: str) -> Callable[..., Any]:
        for owner in (datamodule, model):
            if isinstance(owner, DataHooks) and getattr(type(owner), name) is not getattr(DataHooks, name):
                return getattr(owner, name)
        return getattr(DataHooks(), name)

    moved = hook("on_before_batch_transfer")(batch.batch, 0)
    moved = hook("transfer_batch_to_device")(moved, device, 0)
    return IndexedBatch(batch.index, hook("on_after_batch_transfer")(moved, 0))


def _require_finite(name: str, values: Tensor, index: Tensor) -> None:
    finite = values.isfinite().reshape(len(index), -1).all(dim=1).cpu()
    if not finite.all():
        samples = index[~finite].tolist()
        raise NonFiniteGradientError(
            f"NaN or infinity in the {name} of {len(samples)} of {len(index)} samples: {samples[:10]}"
            + ("…" if len(samples) > 10 else "")
            + " (positions in the dataset). Look at these samples for invalid values; with 16-bit precision, try "
            "precision 32-true."
        )


def _accumulator_dtype(model: nn.Module) -> torch.dtype:
    double = any(parameter.dtype == torch.float64 for parameter in model.parameters())
    return torch.float64 if double else torch.float32


def _numpy(tensor: Tensor) -> Any:
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()).numpy()
