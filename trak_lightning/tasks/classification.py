"""One of several classes: the multiclass margin."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trak_lightning.errors import DataError
from trak_lightning.tasks.fields import Inputs, Key
from trak_lightning.tasks.logistic import CrossEntropy, Logistic
from trak_lightning.tasks.margin import margin
from trak_lightning.tasks.supervised import SupervisedTask
from trak_lightning.tasks.validation import require_classes


class Classification(SupervisedTask):
    """Multiclass margin: ``f = log(p_y / (1 − p_y)) = logit_y − logsumexp(other logits)``.

    Loss weight q = 1 − p_y and curvature r = p_y(1 − p_y) follow from f, since p_y = sigmoid(f). Park et al. 2023,
    section 3.1. For a loss with weighted classes or smoothed labels, see `trak_lightning.tasks.logistic.CrossEntropy`.

    The model maps inputs to logits (B, C); labels are integers (B,) in 0 … C−1. Batches and models are those of
    `SupervisedTask`.

    Args:
        inputs: which entries of a batch the model is called with.
        labels: the entry of a batch that holds the labels.
        outputs: the entry of the model's output that holds the logits.
        class_weight: one weight a class, as the loss has them that the model was trained with.
        label_smoothing: of that loss.
    """

    def __init__(
        self,
        inputs: Inputs = None,
        labels: Key | None = None,
        outputs: Key | None = None,
        class_weight: list[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(inputs, labels, outputs)
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self._loss = CrossEntropy(class_weight, label_smoothing)

    def output(self, model: nn.Module, batch: Any) -> Tensor:
        logits, labels = self.predict(model, batch), self.targets(batch)
        if logits.ndim != 2:
            raise DataError(f"the model must return logits of shape (B, classes), got {tuple(logits.shape)}")
        require_classes(logits, labels)
        self._loss.require(logits.shape[1])
        return margin(logits, labels)

    def probabilities(self, model: nn.Module, batch: Any) -> Tensor:
        probabilities: Tensor = self.predict(model, batch).softmax(dim=-1)
        return probabilities

    def loss_weight(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return self._logistic(model, batch, output).loss_weight(output)

    def curvature(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return self._logistic(model, batch, output).curvature(output)

    def _logistic(self, model: nn.Module, batch: Any, output: Tensor) -> Logistic:
        if self._loss.is_plain:
            return Logistic(torch.ones_like(output), torch.zeros_like(output))
        if self.class_weight is not None:
            classes = len(self.class_weight)
        else:
            with torch.no_grad():  # the number of classes is the model's own affair
                classes = self.predict(model, batch).shape[-1]
        return self._loss.logistic(self.targets(batch), classes, output.dtype)


class ImageClassification(Classification):
    __doc__ = Classification.__doc__
    input_names: ClassVar[tuple[str, ...]] = ("pixel_values", "image", "images", "img")


class TextClassification(Classification):
    __doc__ = Classification.__doc__
