"""Compute the rows of one batch: the features, output, loss weight and curvature of every sample."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trak_lightning.data.loading import IndexedBatch
from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import (
    DataError,
    DeviceMemoryError,
    OneSampleAtATime,
    TrakError,
    UnsupportedModelError,
    WrongRowsError,
    first_line,
)
from trak_lightning.extractors.audit import as_outputs
from trak_lightning.extractors.base import GradientExtractor, RuleUse
from trak_lightning.extractors.state import gradients, requiring, without_fast_path
from trak_lightning.featurize.batch_audit import (
    BatchAuditor,
    Comparison,
    difference,
    random_state,
)
from trak_lightning.featurize.blame import blame
from trak_lightning.featurize.non_finite import require_finite
from trak_lightning.featurize.training_loss import warn_of_training_step
from trak_lightning.gradients import GradientBlock, ParameterLayout, Sink
from trak_lightning.model.dtensor import any_sharded
from trak_lightning.model.first_time import first_time
from trak_lightning.model.module_state import SteadyState, generators
from trak_lightning.projectors.base import Projection
from trak_lightning.run.content_hashes import changed
from trak_lightning.run.formatting import listed
from trak_lightning.runtime.ranks import gathered, world_size
from trak_lightning.stores.base import FeatureRows
from trak_lightning.tasks.base import Task, batch_of, before_each_pass
from trak_lightning.tasks.drawn import positioned

log = logging.getLogger(__name__)


class RowComputer:
    """Compute the rows of batches under one checkpoint.

    A batch is a transaction: all of its rows are returned or none, and the partial sums of a failed attempt are discarded.
    Batches of a new kind are verified before their rows are returned, and so is a share of all others.

    Args:
        model: on `device`, with the checkpoint's weights, in eval mode, and no caches of other weights. Every pass begins with
            the buffers and attributes that it has now.
        task: already fitted, if it needs a fit.
        extractor: computes per-sample gradients.
        projection: P of the checkpoint, or a sink in its place while P is fitted.
        layout: the parameters attributed to.
        load: collates the samples at these dataset positions with the user's code, and moves the batch to `device`.
        device: where the model is.
        precision: the precision of the Trainer.
        auditor: verifies batches; what it knows of kinds of batches is shared by all that use it.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        extractor: GradientExtractor,
        projection: "Projection | PassThrough",
        layout: ParameterLayout,
        load: Callable[[Sequence[int]], IndexedBatch],
        *,
        device: torch.device,
        precision: str,
        auditor: BatchAuditor,
    ) -> None:
        self._model = model
        self._task = task
        self._extractor = extractor
        self._projection = projection
        self._layout = layout
        self._load = load
        self._device = device
        self._precision = precision
        self._auditor = auditor
        self._workers: set[int | None] = {None}
        self._warned = False
        self._steady = SteadyState(model)
        self._generators = generators(model)

    def account(self, indexed: IndexedBatch) -> list[RuleUse]:
        """Which rule computes which parameters, for a batch that is typical of later ones."""
        return self._extractor.account(self._model, self._task, self.samples(indexed), self._layout)

    def rows(self, indexed: IndexedBatch) -> FeatureRows:
        """Compute the row of every sample.

        Raises:
            DataError, DeviceMemoryError, NonFiniteGradientError, UnsupportedModelError, SampleDependenceError: as named.
        """
        if indexed.changed_on_reread is not None and indexed.changed_on_reread.any():
            raise _unsteady(int(indexed.index[indexed.changed_on_reread.argmax()]))
        batch = self.samples(indexed)
        if indexed.worker not in self._workers:
            self._workers.add(indexed.worker)
            batch.fetch(range(batch.size))  # compares what another process reads
        computed = self._in_lockstep if any_sharded(self._model.parameters()) else self._in_turn
        return replace(computed(batch, indexed.index), content=indexed.content)  # type: ignore[arg-type]  # None if unknown

    def check_independence(self, index: Tensor, rows: FeatureRows) -> float:
        """Compare the first and last sample of a batch with the same samples in batches of one. Return the largest difference
        of features, relative to their norm.

        Raises:
            SampleDependenceError: they differ. Names the module that mixes samples, if one is found.
        """
        batch = self.samples(self._load(index.tolist()))
        worst = 0.0
        for position in sorted({0, len(index) - 1}):
            self._verified(batch, index, position)
            alone = self._in_turn(batch.fetch([position]), index[position : position + 1])
            worst = max(worst, difference(alone.features[0], rows.features[position]))
        return worst

    def samples(self, indexed: IndexedBatch) -> SampleBatch:
        """The batch, with a function to fetch and collate its samples again."""
        index = indexed.index.tolist()

        def load(positions: Sequence[int]) -> Any:
            found = self._load([index[position] for position in positions])
            if indexed.content is not None and found.content is not None:
                others = changed(indexed.content[list(positions)], found.content)
                if others.any():
                    raise _unsteady(int(found.index[others.argmax()]))
            return positioned(self._task, found.batch, found.index)

        data = positioned(self._task, indexed.batch, indexed.index)
        return SampleBatch(data, len(index), load, indexed.extent, indexed.differs)

    def _in_turn(self, batch: SampleBatch, index: Tensor) -> FeatureRows:
        """The rows of a batch, verified if it is due."""
        return self._verified(batch, index, self._auditor.due(batch, index))

    def _in_lockstep(self, batch: SampleBatch, index: Tensor) -> FeatureRows:
        """The rows of this rank's batch. Autograd averages the gradients of sharded parameters over the ranks, so a batch is verified by
        all of them together: first those of any rank that are due, then each rank computes its own."""
        every = gathered((tuple(index.tolist()), self._auditor.due(batch, index, world_size())))
        due = {samples: position for samples, position in every if position is not None}
        for samples, position in due.items():
            common = self.samples(self._load(samples))
            rows = self._verified(common, torch.tensor(samples), position)
            if len({samples for samples, _ in every}) == 1:
                return rows
        return self._verified(batch, index, None)

    def _verified(self, batch: SampleBatch, index: Tensor, position: int | None) -> FeatureRows:
        """The rows of a batch, verified by the sample at `position` if one is given, or if its kind turns out to be new."""
        with (
            memory_explained(self._device, batch.size),
            torch.enable_grad(),
            without_fast_path(),
            before_each_pass(self._steady.restore),
        ):
            try:
                rows = self._rows_with_fallback(batch, index, position)
                if not any_sharded(self._model.parameters()):
                    warn_of_training_step(self._model, self._task, self._layout, batch, rows)
                return rows
            except Exception as error:
                if isinstance(error, TrakError) and not isinstance(error, DataError):
                    raise
                if not isinstance(error, TrakError):
                    self._auditor.require_alone(batch, index, error)
                blame(self._model, self._task, batch, index, error, lambda: self.samples(self._load([0])))
                raise

    def _rows_with_fallback(self, batch: SampleBatch, index: Tensor, position: int | None) -> FeatureRows:
        try:
            return self._rows_from(self._extractor, batch, index, position)
        except UnsupportedModelError as refusal:
            other = self._extractor.fall_back(self._model, refusal)
            if other is None or isinstance(refusal, WrongRowsError):
                raise
            return self._rows_from(other, batch, index, position)

    def _rows_from(
        self, extractor: GradientExtractor, batch: SampleBatch, index: Tensor, position: int | None
    ) -> FeatureRows:
        kinds, compared = extractor.kinds, None
        if position is not None:
            compared = self._auditor.begin(batch, position, extractor)
        rows = self._compute(batch, index, extractor, compared)
        known = extractor.kinds == kinds
        if any_sharded(self._model.parameters()) and position is None:
            return rows
        if position is None and not known:
            position = self._auditor.drawn(batch, index)
        positions = {} if position is None else {position: compared}
        if not (extractor.one_by_one or isinstance(self._projection, PassThrough)):
            zero = self._auditor.left_out(rows)
            positions |= {} if zero is None or zero in positions else {zero: None}
        chosen = not self._extractor.falls_back
        try:
            for position, comparison in positions.items():
                self._auditor.verify(batch, index, position, extractor, rows, comparison, chosen=chosen)
        except OneSampleAtATime:
            raise
        except UnsupportedModelError as wrong:
            mended = extractor.distrust(self._model)
            if known and not extractor.one_by_one:
                raise WrongRowsError(str(wrong), mended=mended) from wrong
            raise
        return rows

    def _compute(
        self, batch: SampleBatch, index: Tensor, extractor: GradientExtractor, compared: Comparison | None = None
    ) -> FeatureRows:
        features = self._projection.zeros(batch.size, _accumulator_dtype(self._model))
        sink = _Rows(self._projection, features, compared)
        before = random_state(self._device, self._generators)
        output = extractor.extract(self._model, self._task, batch, self._layout, sink)
        output = as_outputs(output, batch.size, self._task)
        if random_state(self._device, self._generators) != before:
            self._auditor.require_repeatable(batch, index, output, extractor.one_by_one)
        if not sink.reached and not self._warned:
            self._require_gradient(batch)
        self._warn_of_zeros(sink.reached)
        loss_weight, curvature = self._auditor.loss_weight_and_curvature(batch, output, extractor.one_by_one)
        if not isinstance(self._projection, PassThrough):
            self._warn_of_empty((output == 0) & (loss_weight == 0) & (features == 0).all(1), index)
        columns = {"output": output, "loss weight": loss_weight, "gradient": features, "curvature": curvature}
        columns["squared norm of the gradient"] = features.square().sum(1)  # which scores are made from
        require_finite(columns, index, batch, self._model, self._task, self._precision)
        if extractor.one_by_one:
            self._auditor.require_agreement(batch, output)
        return FeatureRows(
            index=index.numpy(),
            features=_numpy(features),
            output=_numpy(output),
            loss_weight=_numpy(loss_weight),
            curvature=_numpy(curvature),
        )

    def _require_gradient(self, batch: SampleBatch) -> None:
        """Refuse a task whose outputs do not depend on any parameter, attributed or not.

        Raises:
            DataError: autograd finds no gradient for any of the first samples.
        """
        every = {name: each for name, each in self._model.named_parameters() if each.is_floating_point()}
        for position in range(min(batch.size, 8)):
            one = batch.fetch([position])
            with requiring(self._model, list(every)), batch_of(1), torch.enable_grad():
                output = self._task.output(self._model, one.data)
                if output.requires_grad:
                    found = gradients(output.sum(), list(every.values()), self._model)
                    if any(grad is not None for grad in found):
                        return
        raise DataError(
            f"the output of {type(self._task).__name__} does not depend on any parameter of {type(self._model).__name__}, according "
            "to autograd, so every feature would be zero. Compute it with the model that the task is given, not with another one, and do "
            "not detach it or compute it under torch.no_grad()."
        )

    def _warn_of_zeros(self, reached: set[str]) -> None:
        missing = [slot for slot in self._layout if slot.name not in reached]
        first, self._warned = not self._warned, True
        if not first or not missing or not first_time(self._model, ("parameters", missing[0].name)):
            return
        names = listed(slot.name for slot in missing)
        log.warning(
            "gradients  no output of the first batch depends on %d of %d parameters (%d of %d entries): %s. That is so for a head that this "
            "task does not use, and they add nothing to the features: leave them out with a pattern, parameters=['!NAME'], or "
            "--parameters '!NAME' on the command line. Otherwise, does a part of the model run under no_grad in eval mode?",
            len(missing), len(self._layout), sum(slot.numel for slot in missing), self._layout.numel, names,
        )  # fmt: skip

    def _warn_of_empty(self, empty: Tensor, index: Tensor) -> None:
        if empty.any() and first_time(self._model, "rows of zeros"):
            log.warning(
                "gradients  output, loss weight and gradient of sample %d are exactly 0, and so are all of its scores: does every one of "
                "its labels have the value of ignore_index? Later ones are not listed.",
                int(index[empty.cpu()][0]),
            )


class PassThrough:
    """Passes gradient blocks to a sink instead of projecting them; those of a batch that is refused, too."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def zeros(self, batch_size: int, dtype: torch.dtype) -> Tensor:
        """Features that stay zero, (B, 1)."""
        return torch.zeros(batch_size, 1, dtype=dtype)

    def add(self, block: GradientBlock, out: Tensor) -> None:
        """Pass on a block."""
        self._sink(block)


class _Rows:
    """A sink that projects blocks, and compares them if they are to be."""

    def __init__(self, projection: "Projection | PassThrough", features: Tensor, compared: Comparison | None) -> None:
        self._projection = projection
        self._features = features
        self._compared = compared
        self.reached: set[str] = set()

    def __call__(self, block: GradientBlock) -> None:
        self.reached.add(block.name)
        if self._compared is not None:
            self._compared(block)
        self._projection.add(block, self._features)

    @property
    def restart(self) -> Callable[[], None] | None:
        return None if isinstance(self._projection, PassThrough) else self._restart

    @property
    def halves(self) -> Callable[[Tensor], None] | None:
        return None if self._compared is None else self._compared.told

    def _restart(self) -> None:
        self.reached.clear()
        self._features.zero_()
        if self._compared is not None:
            self._compared.restart()


def _unsteady(sample: int) -> DataError:
    return DataError(
        f"sample {sample} is different when it is read again: the dataset draws random numbers for it, or depends on what was read "
        "before or on the worker process that reads. Scores belong to fixed samples: attribute to the dataset without random "
        "transforms."
    )


@contextmanager
def memory_explained(device: torch.device, samples: int) -> Iterator[None]:
    """Convert an out-of-memory error of torch into one that names the remedy.

    Raises:
        DeviceMemoryError: instead of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        # On a CPU, torch raises a plain RuntimeError.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise DeviceMemoryError(
            f"{device} does not have enough memory for the gradients of a batch of {samples} samples ({first_line(error)}). Use "
            f"smaller batches (batch_size, --batch_size {max(1, samples // 2)}), or fewer parameters (parameters, --parameters). Stored "
            "features keep their batch size: use a new run directory, or delete them."
        ) from error


def _accumulator_dtype(model: nn.Module) -> torch.dtype:
    double = any(parameter.dtype == torch.float64 for parameter in model.parameters())
    return torch.float64 if double else torch.float32


def _numpy(tensor: Tensor) -> Any:
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()).numpy()
