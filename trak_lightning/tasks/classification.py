"""One of several classes: the multiclass margin."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trak_lightning.errors import DataError, docs_page
from trak_lightning.run.meaning import Meaning
from trak_lightning.tasks.base import ClassProblems
from trak_lightning.tasks.fields import Inputs, Key
from trak_lightning.tasks.logistic import CrossEntropy, Logistic
from trak_lightning.tasks.margin import margin
from trak_lightning.tasks.probabilities import OutputsAre, class_logits, require_choice
from trak_lightning.tasks.supervised import SupervisedTask
from trak_lightning.tasks.validation import class_labels, number, numbers, require_classes


class Classification(SupervisedTask):
    """Multiclass margin: ``f = log(p_y / (1 − p_y)) = logit_y − logsumexp(other logits)``.

    Loss weight q = 1 − p_y and curvature r = p_y(1 − p_y) follow from f, since p_y = sigmoid(f). Park et al. 2023,
    section 3.1. For a loss with weighted classes or smoothed labels, see `trak_lightning.tasks.logistic.CrossEntropy`.

    The model maps inputs to logits or log-probabilities (B, C). Labels are integers of any width in 0 … C−1, (B,) or (B, 1),
    or one-hot, (B, C). Batches, models and the options inputs, labels and outputs are those of `SupervisedTask`.

    Args:
        class_weight: one weight per class, as in the loss that the model was trained with.
        label_smoothing: the label smoothing of that loss.
        outputs_are: ``probabilities`` for a model that returns probabilities and was trained with their logarithm; ``logits`` to
            use outputs that look like probabilities as logits, as CrossEntropyLoss does. By default such outputs are refused.
    """

    meaning = Meaning("log-odds of the label", "push towards the label", "push away from it", "output")

    def __init__(
        self,
        inputs: Inputs = None,
        labels: Key | None = None,
        outputs: Key | None = None,
        class_weight: list[float] | None = None,
        label_smoothing: float = 0.0,
        outputs_are: OutputsAre = None,
    ) -> None:
        super().__init__(inputs, labels, outputs)
        require_choice(outputs_are)
        self.class_weight = numbers(class_weight, "class_weight")
        self.label_smoothing = number(label_smoothing, "label_smoothing")
        self.outputs_are = outputs_are
        self._loss = CrossEntropy(self.class_weight, self.label_smoothing)

    def output(self, model: nn.Module, batch: Any) -> Tensor:
        logits, labels = self._logits(model, batch), self._classes(batch)
        require_classes(logits, labels)
        self._loss.require(logits.shape[1])
        return margin(logits, labels)

    def probabilities(self, model: nn.Module, batch: Any) -> Tensor:
        return self._logits(model, batch).softmax(dim=-1)

    def class_problems(self, model: nn.Module, batch: Any) -> ClassProblems:
        logits = self._logits(model, batch).unsqueeze(1)
        return ClassProblems(
            logits, torch.ones_like(logits[..., 0], dtype=torch.bool), torch.ones_like(logits[:, 0, 0])
        )

    def require_class_problems(self) -> None:
        if self.class_weight is not None:
            super().require_class_problems()

    def class_labels(self, batch: Any) -> Tensor:
        return self._classes(batch)

    def loss_weight(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return self._logistic(model, batch, output).loss_weight(output)

    def curvature(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return self._logistic(model, batch, output).curvature(output)

    def _logits(self, model: nn.Module, batch: Any) -> Tensor:
        logits = self.predict(model, batch, ndim=2)
        if logits.ndim != 2:
            remedy = {
                1: "For one logit per sample, use task binary_classification; for one number, regression.",
                3: "For a label per token, use task token_classification.",
            }.get(logits.ndim, "For a label per pixel, use task segmentation.")
            raise DataError(
                f"the model must return logits of shape (B, classes), got {tuple(logits.shape)}. {remedy} Otherwise, use task loss "
                f"with a function of your own: {docs_page('recipes')}."
            )
        return class_logits(logits, self.outputs_are)

    def _classes(self, batch: Any) -> Tensor:
        return class_labels(self.targets(batch), ndim=1)

    def _logistic(self, model: nn.Module, batch: Any, output: Tensor) -> Logistic:
        if self._loss.is_plain:
            return Logistic(torch.ones_like(output), torch.zeros_like(output))
        if self.class_weight is not None:
            classes = len(self.class_weight)
        else:
            with torch.no_grad():  # only the model knows the number of classes
                classes = self.predict(model, batch, ndim=2).shape[-1]
        return self._loss.logistic(self._classes(batch), classes, output.dtype)


class ImageClassification(Classification):
    __doc__ = Classification.__doc__
    input_names: ClassVar[tuple[str, ...]] = ("pixel_values", "image", "images", "img")

    def output(self, model: nn.Module, batch: Any) -> Tensor:
        try:
            return super().output(model, batch)
        except DataError as error:  # whose reader may not know that there are tasks
            raise DataError(f"{error} The task is image_classification.") from None


class TextClassification(Classification):
    __doc__ = Classification.__doc__
    input_names: ClassVar[tuple[str, ...]] = ("input_ids",)
