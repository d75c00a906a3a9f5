"""From one batch to its rows: features, outputs, loss weights and curvatures of every sample, or a refusal by name."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from trak_lightning.data.dataset import IndexedBatch
from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import DataError, DeviceMemoryError, NonFiniteGradientError, TrakError, UnsupportedModelError
from trak_lightning.extractors.audit import as_outputs
from trak_lightning.extractors.base import GradientExtractor, RuleUse
from trak_lightning.extractors.state import requiring, without_fast_path
from trak_lightning.featurize.batch_audit import BatchAuditor, difference, sample_weights_of
from trak_lightning.gradients import GradientBlock, ParameterLayout
from trak_lightning.model.caches import clear_caches
from trak_lightning.projectors.base import Projection
from trak_lightning.stores.base import FeatureRows
from trak_lightning.tasks.base import Task, batch_of

log = logging.getLogger(__name__)


class RowComputer:
    """Compute the rows of batches under one checkpoint.

    A batch is a transaction: its rows are returned once all of them are complete, and what a refused attempt has added up is
    discarded. Batches of a kind not seen before are verified before they are returned, and so is a share of all others.

    Args:
        model: on `device`, with the checkpoint's weights, in eval mode.
        task: fitted, if it is one that has to be.
        extractor: computes per-sample gradients.
        projection: P of the checkpoint.
        layout: the parameters attributed to.
        load: collate these positions of the dataset, alone, by the user's own code, and move them to `device`.
        device: where the model is.
        precision: the Trainer's.
        seed: decides which batches are verified, together with their positions.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        extractor: GradientExtractor,
        projection: Projection,
        layout: ParameterLayout,
        load: Callable[[Sequence[int]], IndexedBatch],
        *,
        device: torch.device,
        precision: str,
        seed: int = 0,
    ) -> None:
        self._model = model
        self._task = task
        self._extractor = extractor
        self._projection = projection
        self._layout = layout
        self._load = load
        self._device = device
        self._precision = precision
        self._auditor = BatchAuditor(model, task, layout, seed)
        self._warned = self._cleared = False

    def account(self, indexed: IndexedBatch) -> list[RuleUse]:
        """Which rule computes which parameters, on a batch like those to come."""
        return self._extractor.account(self._model, self._task, self.samples(indexed), self._layout)

    def rows(self, indexed: IndexedBatch) -> FeatureRows:
        """Compute the row of every sample.

        Raises:
            DataError, DeviceMemoryError, NonFiniteGradientError, UnsupportedModelError, SampleDependenceError: as named.
        """
        batch = self.samples(indexed)
        if not self._cleared:
            self._clear_caches(batch)
        return replace(self._verified(batch, indexed.index), content=indexed.content)  # type: ignore[arg-type]  # None is nothing known

    def _clear_caches(self, batch: SampleBatch) -> None:
        def output() -> Tensor:
            one = batch.fetch([0])
            with without_fast_path(), batch_of(1):
                return self._task.output(self._model, one.data)

        clear_caches(self._model, output)
        self._cleared = True

    def check_independence(self, index: Tensor, rows: FeatureRows) -> float:
        """Compare the first and last sample of a batch with the same samples alone. Returns the largest difference of
        features, relative to their norm.

        Raises:
            SampleDependenceError: they differ. Names the module at fault, where there is one.
        """
        batch = self.samples(self._load(index.tolist()))
        worst = 0.0
        for position in sorted({0, len(index) - 1}):
            self._verified(batch, index, position)
            alone = self._verified(batch.fetch([position]), index[position : position + 1])
            worst = max(worst, difference(alone.features[0], rows.features[position]))
        return worst

    def samples(self, indexed: IndexedBatch) -> SampleBatch:
        """The batch with the way to fetch its samples anew."""
        index = indexed.index.tolist()

        @cache  # while the batch lives
        def one(position: int) -> Any:
            return self._load([index[position]]).batch

        def load(positions: Sequence[int]) -> Any:
            if len(positions) == 1:
                return one(positions[0])
            return self._load([index[position] for position in positions]).batch

        return SampleBatch(indexed.batch, len(index), load, indexed.extent)

    def _verified(self, batch: SampleBatch, index: Tensor, position: int | None = None) -> FeatureRows:
        """The rows of a batch, which is verified if it is due, or with the sample at `position` if one is given."""
        with memory_explained(self._device, batch.size), torch.enable_grad(), without_fast_path():
            try:
                return self._by_some(batch, index, position)
            except TrakError:
                raise
            except Exception as error:
                self._auditor.require_alone(batch, index, error)
                raise

    def _by_some(self, batch: SampleBatch, index: Tensor, position: int | None) -> FeatureRows:
        try:
            return self._by(self._extractor, batch, index, position)
        except UnsupportedModelError as refusal:
            other = self._extractor.fall_back(self._model, refusal)
            if other is None:
                raise
            return self._by(other, batch, index, position)

    def _by(self, extractor: GradientExtractor, batch: SampleBatch, index: Tensor, position: int | None) -> FeatureRows:
        kinds = extractor.kinds
        rows = self._compute(batch, index, extractor)
        due = self._auditor.due(batch, index, rehearsed=extractor.kinds > kinds)
        position = due if position is None else position
        if position is not None:
            # One by one because the user wants that, or because nothing else was right?
            chosen = type(self._extractor).fall_back is GradientExtractor.fall_back
            self._auditor.verify(batch, index, position, extractor, rows, chosen=chosen)
        return rows

    def _compute(self, batch: SampleBatch, index: Tensor, extractor: GradientExtractor) -> FeatureRows:
        projection, reached = self._projection, set[str]()
        features = projection.zeros(batch.size, _accumulator_dtype(self._model))

        def sink(block: GradientBlock) -> None:
            reached.add(block.name)
            projection.add(block, features)

        output = extractor.extract(self._model, self._task, batch, self._layout, sink)
        output = as_outputs(output, batch.size, self._task)
        if not reached and not self._warned:
            self._require_gradient(batch)
        self._warn_of_zeros(reached)
        with torch.no_grad():
            loss_weight, curvature = sample_weights_of(self._model, self._task, batch, output, extractor.one_by_one)
        columns = {"output": output, "loss weight": loss_weight, "gradient": features, "curvature": curvature}
        for name, column in columns.items():
            _require_finite(name, column, index, self._precision)
        return FeatureRows(
            index=index.numpy(),
            features=_numpy(features),
            output=_numpy(output),
            loss_weight=_numpy(loss_weight),
            curvature=_numpy(curvature),
        )

    def _require_gradient(self, batch: SampleBatch) -> None:
        """Refuse a task from whose outputs no gradient flows, whichever parameters are attributed to.

        Raises:
            DataError: autograd records nothing for any of the first samples.
        """
        every = [name for name, parameter in self._model.named_parameters() if parameter.is_floating_point()]
        for position in range(min(batch.size, 8)):
            one = batch.fetch([position])
            with requiring(self._model, every), batch_of(1), torch.enable_grad():
                if self._task.output(self._model, one.data).requires_grad:
                    return
        raise DataError(
            f"the output of {type(self._task).__name__} does not depend on any parameter of {type(self._model).__name__}, as far as "
            "autograd can see, so every feature would be zero. Do not detach it or compute it under torch.no_grad()."
        )

    def _warn_of_zeros(self, reached: set[str]) -> None:
        missing = [slot for slot in self._layout if slot.name not in reached]
        if self._warned or not missing:
            self._warned = True
            return
        self._warned = True
        names = ", ".join(slot.name for slot in missing[:5]) + (" …" if len(missing) > 5 else "")
        log.warning(
            "gradients  no output of the first batch depends on %d of %d parameters, with %d of %d numbers: %s. Where that is "
            "so for every sample, their part of the features is zero. Is a part of the model run under no_grad in eval mode? "
            "Leave these out: parameters=['!NAME'].",
            len(missing), len(self._layout), sum(slot.numel for slot in missing), self._layout.numel, names,
        )  # fmt: skip


@contextmanager
def memory_explained(device: torch.device, samples: int) -> Iterator[None]:
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
