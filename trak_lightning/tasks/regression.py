"""Predict a number: squared error."""

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from trak_lightning.errors import DataError, SettingsError, require_option
from trak_lightning.tasks.base import current_size
from trak_lightning.tasks.fields import Inputs, Key
from trak_lightning.tasks.margin import wide
from trak_lightning.tasks.state import to_json
from trak_lightning.tasks.supervised import SupervisedTask
from trak_lightning.tasks.validation import number

_DEFAULTS = {"mean": 0.0, "std": 1.0, "labels_are": "raw"}


class Regression(SupervisedTask):
    """f is the prediction, and ℓ = (y − f)²/2: q = y − f, the residual, and r = 1.

    A positive score means that the training sample raised the prediction. The model returns (B,) or (B, 1); or (B, D), of
    which one `component` is attributed. Labels have the same shape. Batches, models and the options inputs, labels and
    outputs are those of `SupervisedTask`.

    A model that was trained on (y − mean)/std, which `training_step` makes of the labels of a batch, predicts that: f is then
    mean + std · prediction, so that f, errors and scores are in the unit of the labels. If the dataset has scaled the labels already,
    ``labels_are="scaled"`` brings these back too.

    Args:
        component: which of D predictions.
        mean: what training subtracts from the labels: one number, or one for each of D predictions.
        std: what training divides them by then, likewise.
        labels_are: those of the dataset: ``raw``, or ``scaled``, (y − mean)/std already.

    Raises:
        SettingsError: `std` is not positive, or there are several numbers and none for `component`.
    """

    loss_function: ClassVar[str] = "squared"

    def __init__(
        self,
        inputs: Inputs = None,
        labels: Key | None = None,
        outputs: Key | None = None,
        component: int | None = None,
        mean: list[float] | float = 0.0,
        std: list[float] | float = 1.0,
        labels_are: Literal["raw", "scaled"] = "raw",
    ) -> None:
        super().__init__(inputs, labels, outputs)
        self.component = None if component is None else int(component)
        # Not public: a class derived from this one that scales labels in `targets` may have a `mean` and a `std` of its own.
        self._counts: set[int] = set()
        self._prediction_scale = self._own_number(mean, "mean"), self._own_number(std, "std")
        if self._prediction_scale[1] <= 0:
            raise SettingsError(
                f"std must be positive, got {self._prediction_scale[1]}: it is what training_step divides labels by, after it subtracts the mean"
            )
        require_option("labels_are", labels_are, ("raw", "scaled"))
        self._labels_are = labels_are

    @property
    def state(self) -> dict[str, Any]:
        """The options. `mean` and `std`, those of `component`, and `labels_are` only where they change something, because earlier versions did
        not have them."""
        scale = dict(zip(_DEFAULTS, (*self._prediction_scale, self._labels_are), strict=True))
        return super().state | {name: value for name, value in scale.items() if value != _DEFAULTS[name]}

    def output(self, model: nn.Module, batch: Any) -> Tensor:
        ndim = 1 if self.component is None else 2
        found = self.predict(model, batch, ndim)
        if self._counts and (found.ndim != 2 or self._counts != {found.shape[1]}):
            raise DataError(
                f"mean and std must hold one number for each prediction of the model, which are {tuple(found.shape)}, or one number; "
                f"they hold {' and '.join(map(str, sorted(self._counts)))}"
            )
        mean, std = self._prediction_scale
        return mean + std * wide(self._one(found, "the model's prediction"))

    def loss_weight(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        labels = self._one(self.targets(batch), "the labels")
        if labels.shape != output.shape:
            raise DataError(
                f"labels must have the shape of the prediction, {tuple(output.shape)}; got {tuple(labels.shape)}"
            )
        labels = labels.to(output.dtype)
        if self._labels_are == "scaled":
            mean, std = self._prediction_scale
            labels = mean + std * labels
        return labels - output

    def _own_number(self, value: Any, name: str) -> float:
        """The number of `component`, where there is one for each prediction."""
        found = to_json(value, name)
        if not isinstance(found, list) or len(found) == 1:
            return float(number(found, name))
        if self.component is None or not 0 <= self.component < len(found):
            raise SettingsError(
                f"{name} holds {len(found)} numbers, and component, which says which prediction is attributed, is {self.component}: "
                f"give one number, or one for each prediction and a component in 0 … {len(found) - 1}"
            )
        self._counts.add(len(found))
        return float(number(found[self.component], name))

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


def prediction_scale(task: Regression) -> tuple[float, float]:
    """The mean and the standard deviation of f = mean + std · prediction."""
    return task._prediction_scale
