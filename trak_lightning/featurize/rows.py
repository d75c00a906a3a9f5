"""From one batch to its rows: features, outputs, loss weights and curvatures of every sample, or a refusal by name."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trak_lightning.data.dataset import IndexedBatch
from trak_lightning.errors import DataError, DeviceMemoryError, NonFiniteGradientError
from trak_lightning.extractors.base import GradientExtractor, RuleUse
from trak_lightning.featurize.verification import difference, refuse
from trak_lightning.gradients import ParameterLayout
from trak_lightning.model.caches import clear_caches
from trak_lightning.projectors.base import Projection
from trak_lightning.stores.base import FeatureRows
from trak_lightning.tasks.base import Task


class RowComputer:
    """Compute the rows of batches under one checkpoint.

    Args:
        model: on `device`, with the checkpoint's weights, in eval mode.
        task: fitted, if it is one that has to be.
        extractor: computes per-sample gradients.
        projection: P of the checkpoint.
        layout: the parameters attributed to.
        load: collate these positions of the dataset, alone, by the user's own code, and move them to `device`.
        device: where the model is.
        precision: the Trainer's.
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
    ) -> None:
        self._model = model
        self._task = task
        self._extractor = extractor
        self._projection = projection
        self._layout = layout
        self._load = load
        self._device = device
        self._precision = precision
        self._seen_outputs = False

    def account(self, indexed: IndexedBatch) -> list[RuleUse]:
        """Which rule computes which parameters, on a batch like those to come."""
        return self._extractor.account(self._model, self._task, indexed.batch, self._layout)

    def rows(self, indexed: IndexedBatch) -> FeatureRows:
        """Compute the row of every sample.

        Raises:
            DataError, DeviceMemoryError, NonFiniteGradientError, UnsupportedModelError: as named.
        """
        if not self._seen_outputs:
            self._require_outputs(indexed)
        projection = self._projection
        features = projection.zeros(len(indexed.index), _accumulator_dtype(self._model))
        with _memory_explained(self._device, len(indexed.index)), torch.enable_grad():
            output = self._extractor.extract(
                self._model, self._task, indexed.batch, self._layout, lambda block: projection.add(block, features)
            )
        with torch.no_grad():
            loss_weight, curvature = self._task.loss_weight_and_curvature(self._model, indexed.batch, output)
        columns = {"output": output, "loss weight": loss_weight, "gradient": features, "curvature": curvature}
        for name, column in columns.items():
            _require_finite(name, column, indexed.index, self._precision)
        return FeatureRows(
            index=indexed.index.numpy(),
            features=_numpy(features),
            output=_numpy(output),
            loss_weight=_numpy(loss_weight),
            curvature=_numpy(curvature),
            content=indexed.content,
        )

    def _require_outputs(self, indexed: IndexedBatch) -> None:
        """Look at the task's outputs on the first batch, before anything is taken apart.

        Raises:
            DataError: they are not one number a sample.
        """
        with _memory_explained(self._device, len(indexed.index)), torch.no_grad():
            output = self._task.output(self._model, indexed.batch)
        expected = (len(indexed.index),)
        if not isinstance(output, Tensor) or output.shape != expected:
            found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise DataError(
                f"the output of {type(self._task).__name__} must have shape {expected}, one number a sample; got {found}. Do not average "
                "over the batch: reduction='none', or no .mean()."
            )
        clear_caches(self._model, lambda: self._task.output(self._model, indexed.batch))
        self._seen_outputs = True

    def check_independence(self, index: Tensor, rows: FeatureRows) -> float:
        """Compare the first and last sample of a batch with the same samples alone: gradients, and outputs, since some
        extractors take batches apart. Returns the largest difference of gradients.

        Raises:
            SampleDependenceError: they differ. Names the module at fault, where there is one.
        """
        tolerance = 1e-2 if self._precision in ("32-true", "64-true") else 0.3
        within = self._load(index.tolist())
        with torch.no_grad():
            outputs = self._task.output(self._model, within.batch)
        worst = 0.0
        for position in sorted({0, len(index) - 1}):
            alone = self._load([int(index[position])])
            row = self.rows(alone)
            error = difference(row.features[0], rows.features[position])
            shift = abs(float(outputs[position]) - float(row.output[0])) / max(1.0, abs(float(row.output[0])))
            if not max(error, shift) <= tolerance:
                samples = int(index[position]), position, len(index)
                refuse(self._model, self._task, samples, max(error, shift), alone.batch, within.batch)
            worst = max(worst, error)
        return worst


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
