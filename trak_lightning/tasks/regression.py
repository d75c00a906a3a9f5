"""Predict a number: squared error."""

from typing import Any, ClassVar

from torch import Tensor, nn

from trak_lightning.errors import DataError
from trak_lightning.tasks.base import current_size
from trak_lightning.tasks.fields import Inputs, Key
from trak_lightning.tasks.margin import wide
from trak_lightning.tasks.supervised import SupervisedTask


class Regression(SupervisedTask):
    """f is the prediction, and ℓ = (y − f)²/2: q = y − f, the residual, and r = 1.

    A positive score means that the training sample raised the prediction. The model returns (B,) or (B, 1); or (B, D), of
    which one `component` is attributed. Labels have the same shape. Batches, models and the options inputs, labels and
    outputs are those of `SupervisedTask`.

    Args:
        component: which of D predictions.
    """

    loss_function: ClassVar[str] = "squared"

    def __init__(
        self, inputs: Inputs = None, labels: Key | None = None, outputs: Key | None = None, component: int | None = None
    ) -> None:
        super().__init__(inputs, labels, outputs)
        self.component = None if component is None else int(component)

    def output(self, model: nn.Module, batch: Any) -> Tensor:
        ndim = 1 if self.component is None else 2
        return wide(self._one(self.predict(model, batch, ndim), "the model's prediction"))

    def loss_weight(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        labels = self._one(self.targets(batch), "the labels")
        if labels.shape != output.shape:
            raise DataError(
                f"labels must have the shape of the prediction, {tuple(output.shape)}; got {tuple(labels.shape)}"
            )
        return labels.to(output.dtype) - output

    def _one(self, values: Tensor, what: str) -> Tensor:
        """Pick (B,) from (B,), (B, 1) or (B, D)."""
        size = current_size()
        time_first = values.ndim > 1 and size is not None and len(values) != size and size in values.shape
        if values.ndim == 1 and self.component in (None, 0):
            return values
        if values.ndim == 2 and not time_first and self.component is None and values.shape[1] == 1:
            return values[:, 0]
        if values.ndim == 2 and not time_first and self.component is not None and 0 <= self.component < values.shape[1]:
            return values[:, self.component]
        function = "task loss with a function (model, batch) → loss of each sample"
        if time_first:
            remedy = f"Samples must come first, and here dimension {values.shape.index(size)} has their number: transpose, or use {function}"
        else:
            remedy = (
                f"Name one of the {values.shape[1]} numbers of a sample: component: 0. " * (values.ndim == 2)
                + f"For all numbers of a sample, such as a forecast, use {function}: (model(x) - y).square().flatten(1).mean(1)"
            )
        B = "B" if size is None else size
        raise DataError(
            f"{what} must have shape ({B},) or ({B}, 1), one number per sample, or ({B}, D) with a component in 0 … D−1; got "
            f"{tuple(values.shape)}, and component is {self.component}. {remedy}."
        )
