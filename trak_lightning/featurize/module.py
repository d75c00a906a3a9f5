"""The LightningModule that joins task, extractor and projector."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from multiprocessing import parent_process
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trak_lightning.data.dataset import AttributionData, IndexedBatch
from trak_lightning.data.samples import SampleBatch
from trak_lightning.data.transfer import to_device
from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.featurize.batches import ClaimedBlocks, LockstepBatches
from trak_lightning.featurize.fitting import FitFile, TrainingSet
from trak_lightning.featurize.rows import RowComputer
from trak_lightning.gradients import ParameterLayout, Sink
from trak_lightning.model.autocast import cast_anew
from trak_lightning.model.dtensor import any_sharded, shards
from trak_lightning.projectors.base import Projection, Projector
from trak_lightning.runtime.lightning import share_device_mesh, silence
from trak_lightning.runtime.ranks import agreed
from trak_lightning.runtime.signals import StopRequest
from trak_lightning.seeds import derive_seed
from trak_lightning.stores.base import FeatureRows, FeatureSet
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
        self.plan: ClaimedBlocks | LockstepBatches | None = None

    def setup(self, stage: str) -> None:
        # Gradients cannot be had under inference mode, and in on_predict_start it is too late to leave it.
        self.trainer.predict_loop.inference_mode = False
        if parent_process() is not None:  # a rank that was spawned has filters of its own
            silence()

    def configure_model(self) -> None:
        if shards(self.trainer, self.model):
            assert isinstance(self.model, L.LightningModule)
            share_device_mesh(self, self.model)  # Lightning does both for the outermost module only.
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
                    samples = SampleBatch(
                        batch.batch, len(batch.index), partial(self._among, data, batch.index.tolist())
                    )
                    self.extractor.extract(self.model, self.task, samples, self.layout, sink)

        seed = derive_seed(self._seed, self.feature_set.spec.checkpoint, "fit")
        return self._projector.fit(self.layout, gradients, seed=seed)

    def _load(self, data: AttributionData, positions: Sequence[int]) -> IndexedBatch:
        """A batch of these samples, as the Trainer would give it."""
        batch = IndexedBatch(torch.tensor(positions), data.batch(positions))
        return to_device(self.trainer.precision_plugin.convert_input(batch), data.hooks, self.model, self.device)

    def _among(self, data: AttributionData, index: Sequence[int], positions: Sequence[int]) -> Any:
        return self._load(data, [index[position] for position in positions]).batch

    def transfer_batch_to_device(self, batch: IndexedBatch, device: torch.device, dataloader_idx: int) -> IndexedBatch:
        return to_device(batch, self._data.hooks, self.model, device)

    def predict_step(self, indexed: IndexedBatch, batch_idx: int, dataloader_idx: int = 0) -> FeatureRows | None:
        with cast_anew():
            rows = self.computer.rows(indexed)
        dropped = isinstance(self.plan, LockstepBatches) and batch_idx not in self.plan.kept
        return None if dropped else rows

    @cached_property
    def computer(self) -> RowComputer:
        """Computes the rows of a batch, once the model is on its device and task and projector are fitted."""
        projection = Projection(
            self._projector,
            self.layout,
            seed=self._seed,
            checkpoint=self.feature_set.spec.checkpoint,
            device=self.device,
            fitted=self._fitted,
        )
        return RowComputer(
            self.model,
            self.task,
            self.extractor,
            projection,
            self.layout,
            partial(self._load, self._data),
            device=self.device,
            precision=str(self.trainer.precision),
            seed=derive_seed(self._seed, self.feature_set.spec.checkpoint),
        )
