"""The LightningModule that joins task, extractor and projector, and the callback that writes its rows, block by block."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import parent_process
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.core.hooks import DataHooks
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trak_lightning.data.dataset import AttributionData, IndexedBatch
from trak_lightning.errors import DataError, DeviceMemoryError, NonFiniteGradientError, TrakError
from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.featurize.fitting import FitFile, TrainingSet
from trak_lightning.featurize.verification import difference, refuse
from trak_lightning.gradients import ParameterLayout, Sink
from trak_lightning.model.autocast import cast_anew
from trak_lightning.model.dtensor import any_sharded, shards
from trak_lightning.projectors.base import Projection, Projector
from trak_lightning.runtime.lightning import silence
from trak_lightning.runtime.ranks import agreed
from trak_lightning.runtime.signals import StopRequest
from trak_lightning.seeds import derive_seed
from trak_lightning.stores.base import FeatureRows, FeatureSet, concatenate
from trak_lightning.stores.claims import ClaimedBlocks, LockstepBatches
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
        blocks: those of the set that are this job's.
        stop: whether the process was asked to end.
        training: the training set, for a projector or a task that has to be fitted.
        fit_file: where what the projector has learned is kept.
        reference_file: where what the task has learned is kept.
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
        blocks: range,
        stop: StopRequest,
        training: TrainingSet,
        fit_file: FitFile,
        reference_file: FitFile,
    ) -> None:
        super().__init__()
        self.model = model
        self.feature_set = feature_set
        self.task = task
        self.extractor = extractor
        self._projector = projector
        self.layout = layout
        self._data = data
        self._seed = seed
        self._blocks = blocks
        self.stop = stop
        self._training = training
        self._fit_file = fit_file
        self._reference_file = reference_file
        self._fitted: dict[str, Tensor] = {}
        self._projection: Projection | None = None
        self.plan: ClaimedBlocks | LockstepBatches | None = None
        self._seen_outputs = False

    def setup(self, stage: str) -> None:
        # Gradients cannot be had under inference mode, and in on_predict_start it is too late to leave it.
        self.trainer.predict_loop.inference_mode = False
        if parent_process() is not None:  # a rank that was spawned has filters of its own
            silence()

    def configure_model(self) -> None:
        if shards(self.trainer, self.model):
            assert isinstance(self.model, L.LightningModule)
            # Lightning does both for the outermost module only.
            self.model._device_mesh = self._device_mesh
            self.model.configure_model()

    def predict_dataloader(self) -> DataLoader:
        # Here, because this is the first that every process calls after the model has been moved to its device, and after
        # Lightning has put its handlers of signals in place.
        self.stop.install(self.trainer)
        if self.task.fit_samples:
            self._bind_task(self._shared(self._reference_file, self._fit_task))
        if self._projector.fit_samples:
            self._fitted = self._shared(self._fit_file, self._fit)
        # Rank 0's list of blocks, lest a block finished in between is missing for some ranks only.
        missing = agreed(self.trainer, lambda: self.feature_set.missing_in(self._blocks))
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        if self._lockstep:
            self.plan = LockstepBatches(self.feature_set, missing, rank, world_size)
            return self._data.loader(self.plan, pin_memory=self.device.type == "cuda")
        first = len(missing) * rank // world_size
        self.plan = ClaimedBlocks(self.feature_set, missing[first:] + missing[:first])
        return self._data.loader(self.plan, pin_memory=self.device.type == "cuda")

    @property
    def _lockstep(self) -> bool:
        """Whether every forward pass needs all ranks, since each holds a part of every layer."""
        return any_sharded(self.model.parameters())

    def _shared(self, file: FitFile, fit: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What is in the file, which rank 0 makes if it is not there, so that all ranks read the same bits."""
        if not agreed(self.trainer, file.exists) and (self._lockstep or self.trainer.is_global_zero):
            fitted = fit()
            if self.trainer.is_global_zero:
                file.save(fitted)
        agreed(self.trainer, file.exists)
        return file.load()

    def _fit_task(self) -> dict[str, Tensor]:
        reference = self._training.reference
        assert reference is not None
        with self.trainer.precision_plugin.predict_step_context(), cast_anew():
            return reference.fit(self.task, self.model, lambda data, positions: self._load(data, positions).batch)

    def _bind_task(self, found: dict[str, Tensor]) -> None:
        self.task = self.task.fitted({name: tensor.to(self.device) for name, tensor in found.items()})

    def _fit(self) -> dict[str, Tensor]:
        """Show the projector the gradients of training samples, spread evenly over the set."""
        data = self._training.data
        count = min(self._projector.fit_samples, len(data))
        positions = [len(data) * number // count for number in range(count)]
        size = self.feature_set.spec.batch_size

        def gradients(sink: Sink) -> None:
            for start in range(0, count, size):
                batch = self._load(data, positions[start : start + size])
                with torch.enable_grad(), self.trainer.precision_plugin.predict_step_context(), cast_anew():
                    self.extractor.extract(self.model, self.task, batch.batch, self.layout, sink)

        seed = derive_seed(self._seed, self.feature_set.spec.checkpoint, "fit")
        return self._projector.fit(self.layout, gradients, seed=seed)

    def _load(self, data: AttributionData, positions: Sequence[int]) -> IndexedBatch:
        """A batch of these samples, as the Trainer would give it."""
        batch = IndexedBatch(torch.tensor(positions), data.batch(positions))
        return to_device(self.trainer.precision_plugin.convert_input(batch), data.hooks, self.model, self.device)

    def transfer_batch_to_device(self, batch: IndexedBatch, device: torch.device, dataloader_idx: int) -> IndexedBatch:
        return to_device(batch, self._data.hooks, self.model, device)

    def predict_step(self, indexed: IndexedBatch, batch_idx: int, dataloader_idx: int = 0) -> FeatureRows | None:
        with cast_anew():
            rows = self._featurize(indexed)
            if batch_idx == 0:
                self.check_independence(indexed.index, rows)
        dropped = isinstance(self.plan, LockstepBatches) and batch_idx not in self.plan.kept
        return None if dropped else rows

    def _featurize(self, indexed: IndexedBatch) -> FeatureRows:
        if not self._seen_outputs:
            self._require_outputs(indexed)
        projection = self._bound_projection()
        features = projection.zeros(len(indexed.index), _accumulator_dtype(self.model))
        with _memory_explained(self.device, len(indexed.index)), torch.enable_grad():
            output = self.extractor.extract(
                self.model, self.task, indexed.batch, self.layout, lambda block: projection.add(block, features)
            )
        with torch.no_grad():
            loss_weight, curvature = self.task.loss_weight_and_curvature(self.model, indexed.batch, output)
        columns = {"output": output, "loss weight": loss_weight, "gradient": features, "curvature": curvature}
        for name, column in columns.items():
            _require_finite(name, column, indexed.index, self.trainer.precision)
        return FeatureRows(
            index=indexed.index.numpy(),
            features=_numpy(features),
            output=_numpy(output),
            loss_weight=_numpy(loss_weight),
            curvature=_numpy(curvature),
        )

    def _require_outputs(self, indexed: IndexedBatch) -> None:
        """Look at the task's outputs on the first batch, before anything is taken apart.

        Raises:
            DataError: they are not one number a sample.
        """
        with _memory_explained(self.device, len(indexed.index)), torch.no_grad():
            output = self.task.output(self.model, indexed.batch)
        expected = (len(indexed.index),)
        if not isinstance(output, Tensor) or output.shape != expected:
            found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise DataError(
                f"the output of {type(self.task).__name__} must have shape {expected}, one number a sample; got {found}. Do not average "
                "over the batch: reduction='none', or no .mean()."
            )
        self._seen_outputs = True

    def _bound_projection(self) -> Projection:
        if self._projection is None:
            self._projection = Projection(
                self._projector,
                self.layout,
                seed=self._seed,
                checkpoint=self.feature_set.spec.checkpoint,
                device=self.device,
                fitted=self._fitted,
            )
        return self._projection

    def check_independence(self, index: Tensor, rows: FeatureRows) -> float:
        """Compare the first and last sample of a batch with the same samples alone: gradients, and outputs, since some
        extractors take batches apart. Returns the largest difference of gradients.

        Raises:
            SampleDependenceError: they differ. Names the module at fault, where there is one.
        """
        tolerance = 1e-2 if self.trainer.precision in ("32-true", "64-true") else 0.3
        within = self._alone(index)
        with torch.no_grad():
            outputs = self.task.output(self.model, within.batch)
        worst = 0.0
        for position in sorted({0, len(index) - 1}):
            alone = self._alone(index[position : position + 1])
            row = self._featurize(alone)
            error = difference(row.features[0], rows.features[position])
            shift = abs(float(outputs[position]) - float(row.output[0])) / max(1.0, abs(float(row.output[0])))
            if not max(error, shift) <= tolerance:
                samples = int(index[position]), position, len(index)
                refuse(self.model, self.task, samples, max(error, shift), alone.batch, within.batch)
            worst = max(worst, error)
        return worst

    def _alone(self, index: Tensor) -> IndexedBatch:
        """A batch of these samples and no others, as a loader would give it."""
        return self._load(self._data, index.tolist())


class BlockWriter(BasePredictionWriter):
    """Collects rows until a block is whole, and stores it while the next one is being computed.

    What is not whole when the process dies is done again. Memory: three blocks.
    """

    def __init__(self, advance: Callable[[int], None], world_size: int) -> None:
        super().__init__("batch")
        self._advance = advance
        self._pending: list[FeatureRows] = []
        self._writing: Future[None] | None = None
        self._computed = torch.zeros(world_size, dtype=torch.int64).share_memory_()

    @property
    def computed(self) -> int:
        """Rows computed so far by this rank, and by those that it has spawned."""
        return int(self._computed.sum())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_advance": _ignore}  # a progress bar does not travel to ranks that are spawned

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._pool = ThreadPoolExecutor(1, "trak-write")

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        with suppress(TrakError):  # a whole block is worth waiting for; the first error is the one to tell
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
        if not self._pending and prediction.index[0] > samples.start:
            known = feature_set.known_rows(block)
            assert known is not None
            self._pending.append(known)
        self._pending.append(prediction)
        if sum(map(len, self._pending)) == len(samples):
            self._finish()
            self._writing = self._pool.submit(_store, feature_set, block, concatenate(self._pending))
            self._pending = []
        self._computed[trainer.global_rank] += len(prediction)
        self._advance(len(prediction) * trainer.world_size)
        if not self._pending:
            pl_module.stop.check()

    def _finish(self) -> None:
        """Wait until the last whole block is stored.

        Raises:
            StorageError: it could not be.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()


def _ignore(count: int) -> None:
    pass


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


@contextmanager
def _memory_explained(device: torch.device, samples: int) -> Iterator[None]:
    """Say what to do when the device's memory is full.

    Raises:
        DeviceMemoryError: instead of torch's own error.
    """
    try:
        yield
    except RuntimeError as error:
        # On a CPU torch has no class of its own for it.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise DeviceMemoryError(
            f"{device} has no memory left for the gradients of a batch of {samples} samples ({str(error).splitlines()[0]}). Use "
            f"smaller batches (batch_size, --batch_size {max(1, samples // 2)}), or fewer parameters (parameters, --parameters). Features "
            "that are stored already keep their batch size: use a new run directory, or delete them."
        ) from error


def _require_finite(name: str, values: Tensor, index: Tensor, precision: str | None) -> None:
    finite = values.isfinite().reshape(len(index), -1).all(dim=1).cpu()
    if not finite.all():
        samples = index[~finite].tolist()
        raise NonFiniteGradientError(
            f"NaN or infinity in the {name} of {len(samples)} of {len(index)} samples: {samples[:10]}"
            + ("…" if len(samples) > 10 else "")
            + " (positions in the dataset). "
            + _REMEDIES.get(str(precision).partition("-")[0], "Look at these samples for invalid values.")
        )


_REMEDIES = {
    "16": "In 16-bit precision every number beyond ±65504 overflows: use --trainer.precision bf16-mixed or 32-true. If it "
    "happens there too, look at these samples for invalid values.",
    "bf16": "If it does not happen with --trainer.precision 32-true, the model needs more than the 8 bits of bfloat16; "
    "else look at these samples for invalid values.",
}


def _accumulator_dtype(model: nn.Module) -> torch.dtype:
    double = any(parameter.dtype == torch.float64 for parameter in model.parameters())
    return torch.float64 if double else torch.float32


def _numpy(tensor: Tensor) -> Any:
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()).numpy()
