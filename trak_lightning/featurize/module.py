"""The LightningModule that joins task, extractor and projector."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from multiprocessing import parent_process
from time import perf_counter

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trak_lightning.data.dataset import AttributionData
from trak_lightning.data.loading import IndexedBatch
from trak_lightning.data.transfer import to_device
from trak_lightning.errors import DataError, NonFiniteGradientError, StaleRowsError, TrakError, WrongRowsError
from trak_lightning.extractors.state import without_fast_path
from trak_lightning.featurize.batch_audit import BatchAuditor
from trak_lightning.featurize.batches import ClaimedBatches, LockstepBatches
from trak_lightning.featurize.blame import held
from trak_lightning.featurize.fitting import FitFile, Fitting
from trak_lightning.featurize.non_finite import cause
from trak_lightning.featurize.reuse import stale_rows, stored_batches
from trak_lightning.featurize.rows import PassThrough, RowComputer
from trak_lightning.featurize.spec import FeaturizeSpec
from trak_lightning.gradients import Sink
from trak_lightning.model.autocast import cast_anew
from trak_lightning.model.caches import clear_caches
from trak_lightning.model.dtensor import any_sharded, uses_sharding
from trak_lightning.model.module_state import SteadyState
from trak_lightning.projectors.base import Projection
from trak_lightning.runtime.lightning import share_device_mesh, silence
from trak_lightning.runtime.ranks import agreed
from trak_lightning.runtime.signals import StopRequest
from trak_lightning.seeds import derive_seed
from trak_lightning.stores.base import FeatureRows, FeatureSet
from trak_lightning.tasks.base import Task, batch_of, before_each_pass
from trak_lightning.tasks.criterion import warn_of_criterion
from trak_lightning.tasks.drawn import positioned


class Featurizer(L.LightningModule):
    """Compute the rows of the missing blocks of one feature set, under ``Trainer.predict``.

    Ranks compute complete blocks, so that the bits of a row do not depend on the number of ranks. Each rank starts at a
    different place in the list of missing blocks and claims a block before computing it; so do other jobs on the same set.

    Args:
        model: the user's model with the checkpoint's weights, in eval mode.
        spec: the settings.
        data: the samples of the split.
        feature_set: where rows are stored; determines the batches.
        fitting: the fits of projector and task.
        blocks: the blocks of the set that this job computes.
        stop: whether the process was asked to end.
        verify: for how many seconds to compute stored rows again first and compare them, one batch at least; None not to.
        repair: if a stored row differs, compute all rows of the set again instead of raising an error.
        training: the stored training rows that scores of these rows use. A batch of them is computed again first, since the
            model or task may have changed.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: FeaturizeSpec,
        data: AttributionData,
        feature_set: FeatureSet,
        *,
        fitting: Fitting,
        blocks: range,
        stop: StopRequest,
        verify: float | None = None,
        repair: bool = False,
        training: FeatureSet | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.data = data
        self.feature_set = feature_set
        self.fitting = fitting
        self.stop = stop
        self.batches: ClaimedBatches | LockstepBatches | None = None
        self._blocks = blocks
        self._verify = verify
        self.repair = repair
        self._training = training
        self.fitted_task: Task = spec.task
        self._fitted_projector: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        # Gradients cannot be computed in inference mode, and on_predict_start is too late to turn it off.
        self.trainer.predict_loop.inference_mode = False
        if parent_process() is not None:  # a spawned rank has warning filters of its own
            silence()

    def configure_model(self) -> None:
        if uses_sharding(self.trainer, self.model):
            assert isinstance(self.model, L.LightningModule)
            share_device_mesh(self, self.model)
            self.model.configure_model()

    def predict_dataloader(self) -> DataLoader:
        # The first hook that every process calls after the model is on its device and Lightning has installed its signal
        # handlers.
        self.stop.install(self.trainer)
        self.fit()
        if self._verify is not None:
            self.verify_stored_rows(self._verify)
            if self._training is not None:
                self._verify_training_rows(self._training)
        self.batches = self._plan_batches()
        return self.data.loader(self.batches, pin_memory=self.device.type == "cuda")

    def fit(self) -> None:
        """Fit the task and the projector, or read the fits that are stored."""
        if self.trainer.is_global_zero:
            warn_of_criterion(self.spec.task, self.model)  # here, since its weights may be those of the checkpoint
        if self.spec.task.fit_samples:
            found = self._stored(self.fitting.reference, self._fit_task)
            self.fitted_task = self.spec.task.fitted({name: tensor.to(self.device) for name, tensor in found.items()})
        clear_caches(self.model, self._some_output)
        if self.spec.projector.fit_samples:
            self._fitted_projector = self._stored(self.fitting.projection, self._fit_projector)

    def verify_stored_rows(self, seconds: float) -> None:
        """Compute stored rows again, one batch after another until time is up. All ranks follow what rank 0 finds.

        Raises:
            StaleRowsError: the model, the task, the data or their code has changed.
        """
        batches, deadline = stored_batches(self.feature_set), perf_counter() + seconds
        positions = agreed(self.trainer, lambda: next(batches, None))
        while positions is not None:
            stale = self._stale(self.feature_set, self.computer, self.data, positions)
            if stale is not None and not self.repair:
                raise stale
            if stale is not None:
                agreed(self.trainer, self.discard)
                return
            positions = agreed(self.trainer, lambda: next(batches, None) if perf_counter() < deadline else None)

    def _verify_training_rows(self, stored: FeatureSet) -> None:
        data = self.fitting.training.data
        positions = agreed(self.trainer, lambda: next(stored_batches(stored), None))
        if positions is None:
            return
        try:
            stale = self._stale(stored, self._row_computer(self.projection, data), data, positions)
        except Exception as error:
            if isinstance(error, TrakError) and not isinstance(error, DataError):
                raise
            raise StaleRowsError(
                f"the stored rows of {stored.spec.split!r} cannot be computed again, so the model or the data have changed since: "
                f"{type(error).__name__}: {error}. Restore them, or featurize in another run directory."
            ) from error
        if stale is not None:
            raise stale

    def _stale(
        self, stored: FeatureSet, computer: RowComputer, data: AttributionData, positions: Sequence[int]
    ) -> StaleRowsError | None:
        """Compute stored rows again, and compare them."""
        wrong = None
        with self.trainer.precision_plugin.predict_step_context(), cast_anew():
            try:
                found = computer.rows(self._load(data, positions))
            except WrongRowsError as error:  # the extractor may have been right before the model was changed
                if not error.mended:
                    raise
                wrong, found = error, computer.rows(self._load(data, positions))
        stale: StaleRowsError | None = agreed(self.trainer, partial(stale_rows, stored, found, self.spec.precision))
        if wrong is not None and stale is None:
            raise wrong
        return stale

    def discard(self) -> str:
        """Delete all rows of the feature set, and the scores that were made from them; return what it is called."""
        self.fitting.run.discard_results()
        for block in range(self.feature_set.spec.num_blocks):
            self.feature_set.discard(block)
        return f"{self.feature_set.spec.split!r} under checkpoint {self.feature_set.spec.checkpoint}"

    @cached_property
    def computer(self) -> RowComputer:
        """Computes the rows of a batch. Use it only after the model is on its device and `fit` was called."""
        return self._row_computer(self.projection, self.data)

    def _row_computer(self, projection: Projection | PassThrough, data: AttributionData) -> RowComputer:
        spec = self.spec
        return RowComputer(
            self.model,
            self.fitted_task,
            spec.extractor,
            projection,
            spec.layout,
            partial(self._load, data),
            device=self.device,
            precision=str(self.trainer.precision),
            auditor=self._auditor,
        )

    @cached_property
    def _auditor(self) -> BatchAuditor:
        seed = derive_seed(self.spec.seed, self.feature_set.spec.checkpoint)
        return BatchAuditor(self.model, self.fitted_task, self.spec.layout, seed)

    @cached_property
    def projection(self) -> Projection:
        """P of the checkpoint. Use it only after the model is on its device and `fit` was called."""
        return Projection(
            self.spec.projector,
            self.spec.layout,
            seed=self.spec.seed,
            checkpoint=self.feature_set.spec.checkpoint,
            device=self.device,
            fitted=self._fitted_projector,
        )

    def transfer_batch_to_device(self, batch: IndexedBatch, device: torch.device, dataloader_idx: int) -> IndexedBatch:
        return to_device(batch, self.data.hooks, self.model, device)

    def predict_step(self, indexed: IndexedBatch, batch_idx: int, dataloader_idx: int = 0) -> FeatureRows | None:
        with cast_anew():
            try:
                rows = self.computer.rows(indexed)
            except TrakError:
                raise
            except Exception as error:
                self._require_like_training(indexed, error)
                raise
        dropped = isinstance(self.batches, LockstepBatches) and batch_idx not in self.batches.kept
        return None if dropped else rows

    def _require_like_training(self, indexed: IndexedBatch, error: Exception) -> None:
        """Explain an `error` of the model for targets that are unlike the training samples.

        Raises:
            DataError: names types and shapes of both.
        """
        own = held(self.computer.samples(indexed).fetch([0]))
        data = self.fitting.training.data
        training = held(self._row_computer(PassThrough(lambda block: None), data).samples(self._load(data, [0])))
        if data is not self.data and own != training:
            raise DataError(
                f"{type(self.model).__name__} does not take sample {int(indexed.index[0])} of {self.feature_set.spec.split!r}: "
                f"{type(error).__name__}: {error}. It holds {own}, and the first training sample {training}."
            ) from error

    def _plan_batches(self) -> ClaimedBatches | LockstepBatches:
        # All ranks use rank 0's list, since blocks may be stored in the meantime.
        missing = agreed(self.trainer, lambda: self.feature_set.missing_in(self._blocks))
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        if self._lockstep:
            return LockstepBatches(self.feature_set, missing, rank, world_size, self.data.lengths)
        first = len(missing) * rank // world_size
        return ClaimedBatches(self.feature_set, missing[first:] + missing[:first], self.data.lengths)

    @property
    def _lockstep(self) -> bool:
        """Whether every forward pass needs all ranks, since parameters are sharded."""
        return any_sharded(self.model.parameters())

    def _stored(self, file: FitFile, fit: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Read a fit from its file, so that all ranks have the same bits; rank 0 writes the file if there is none."""
        if not agreed(self.trainer, file.exists) and (self._lockstep or self.trainer.is_global_zero):
            steady = SteadyState(self.model)
            with before_each_pass(steady.restore):
                fitted = fit()
            steady.restore()
            if self.trainer.is_global_zero:
                file.save(fitted)
        agreed(self.trainer, file.exists)
        return file.load()

    def _some_output(self) -> Tensor:
        """The output of the first training sample."""
        indexed = self._load(self.fitting.training.data, [0])
        batch = positioned(self.fitted_task, indexed.batch, indexed.index)
        with self.trainer.precision_plugin.predict_step_context(), cast_anew(), without_fast_path(), batch_of(1):
            return self.fitted_task.output(self.model, batch)

    def _fit_task(self) -> dict[str, Tensor]:
        reference = self.fitting.training.reference
        assert reference is not None
        with self.trainer.precision_plugin.predict_step_context(), cast_anew():
            return reference.fit(self.spec.task, self.model, lambda data, places: self._load(data, places).batch)

    def _fit_projector(self) -> dict[str, Tensor]:
        """Fit the projector to the gradients of training samples, evenly spaced over the set.

        Raises:
            NonFiniteGradientError: the fit overflows; names the first sample that alone makes it so.
        """
        data = self.fitting.training.data
        count = min(self.spec.projector.fit_samples, len(data))
        positions = [len(data) * number // count for number in range(count)]
        found = self._fitted_to(positions)
        if found is not None:
            return found
        sample = next((each for each in positions if self._fitted_to([each]) is None), positions[0])
        computer = self._row_computer(PassThrough(lambda block: None), data)
        reason = cause(sample, computer.samples(self._load(data, [sample])), self.model, self.fitted_task)
        raise NonFiniteGradientError(
            f"squares of the gradient of sample {sample} (its position in the dataset) overflow, to which the projector is fitted. {reason}"
        )

    def _fitted_to(self, positions: Sequence[int]) -> dict[str, Tensor] | None:
        """The projector's fit to the gradients of these training samples; None if it is not finite."""
        spec, data, size = self.spec, self.fitting.training.data, self.feature_set.spec.batch_size

        def gradients(sink: Sink) -> None:
            computer = self._row_computer(PassThrough(sink), data)
            for start in range(0, len(positions), size):
                batch = self._load(data, positions[start : start + size])
                with self.trainer.precision_plugin.predict_step_context(), cast_anew():
                    computer.rows(batch)

        seed = derive_seed(spec.seed, self.feature_set.spec.checkpoint, "fit")
        try:
            found = spec.projector.fit(spec.layout, gradients, seed=seed)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # of numbers that are not finite
            return None
        return found if all(each.isfinite().all() for each in found.values()) else None

    def _load(self, data: AttributionData, positions: Sequence[int]) -> IndexedBatch:
        """Collate these samples and move the batch to the device, as the Trainer would."""
        batch = data.read(positions)
        return to_device(self.trainer.precision_plugin.convert_input(batch), data.hooks, self.model, self.device)
