"""Sequences of multiclass problems, one per token."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from trak_lightning.errors import DataError, require_option
from trak_lightning.tasks.base import Answers, ClassProblems
from trak_lightning.tasks.fields import Inputs, Key
from trak_lightning.tasks.logistic import CrossEntropy
from trak_lightning.tasks.margin import margin
from trak_lightning.tasks.probabilities import OutputsAre, class_logits, require_choice
from trak_lightning.tasks.sum_of_margins import Reduction, SumOfMargins, Terms
from trak_lightning.tasks.validation import class_labels, number, numbers, require_classes

Level: TypeAlias = Literal["sequence", "token"]

IGNORE_INDEX = -100
"""Labels of tokens that do not count, in torch and in ``transformers``."""


class TokenMargins(SumOfMargins):
    """``f = Σ_t log(p_t / (1 − p_t))`` over the tokens whose label is not `ignore_index`.

    The model returns logits (B, T, C). Labels are integers of any width, (B, T). Batches, models and the options inputs,
    labels and outputs are those of `SupervisedTask`.

    Args:
        reduction: ``sum`` of the margins of a sequence, as in the paper, or their ``mean``.
        level: ``sequence``: q is the mean of 1 − p_t; ``token``: f is minus the loss of the sample, and q = 1, so that
            every token counts by its own 1 − p_t.
        ignore_index: the label of tokens that do not count.
        class_weight: one weight per class, as in the loss that the model was trained with.
        label_smoothing: of that loss.
        outputs_are: ``probabilities`` for a model that returns probabilities and was trained with their logarithm; ``logits`` to
            use outputs that look like probabilities as logits, as CrossEntropyLoss does. By default such outputs are refused.
    """

    term: ClassVar[str] = "token"

    def __init__(
        self,
        inputs: Inputs = None,
        labels: Key | None = None,
        outputs: Key | None = None,
        reduction: Reduction = "sum",
        level: Level = "sequence",
        ignore_index: int = IGNORE_INDEX,
        class_weight: list[float] | None = None,
        label_smoothing: float = 0.0,
        outputs_are: OutputsAre = None,
    ) -> None:
        super().__init__(inputs, labels, outputs, reduction=reduction, minus_loss=level == "token")
        require_option("level", level, ("sequence", "token"))
        require_choice(outputs_are)
        self.level = level
        self.ignore_index = int(ignore_index)
        self.class_weight = numbers(class_weight, "class_weight")
        self.label_smoothing = number(label_smoothing, "label_smoothing")
        self.outputs_are = outputs_are
        self._loss = CrossEntropy(self.class_weight, self.label_smoothing)

    @property
    def is_plain(self) -> bool:
        return self._loss.is_plain

    @abstractmethod
    def tokens(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Compute logits (B, T, C), and find the labels (B, T) that they predict."""

    def terms(self, model: nn.Module, batch: Any) -> Terms:
        logits, labels, counted = self._checked(model, batch)
        margins = margin(logits, labels)
        loss = self._loss.logistic(labels, logits.shape[-1], margins.dtype)
        return Terms(margins, counted, loss, self._loss.rest(logits, labels, margins) if self._minus_loss else None)

    def class_problems(self, model: nn.Module, batch: Any) -> ClassProblems:
        logits, _, counted = self._checked(model, batch)
        count = counted.sum(1).clamp(min=1).to(logits.dtype)
        return ClassProblems(logits, counted, 1 / count if self.reduction == "mean" else torch.ones_like(count))

    def require_class_problems(self) -> None:
        if self.class_weight is not None:
            super().require_class_problems()

    def _checked(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, T, C), labels (B, T), 0 where they do not count, and whether they count, (B, T)."""
        logits, labels = self.tokens(model, batch)
        if logits.ndim != 3:
            remedy = {
                2: "For one label per sample, use task text_classification or image_classification.",
                4: "For a label per pixel, use task segmentation.",
            }.get(logits.ndim, "Use task loss with a function of your own.")
            raise DataError(
                f"the model must return logits of shape (B, T, classes), got {tuple(logits.shape)}. {remedy}"
            )
        labels = class_labels(labels, ndim=2)
        require_classes(logits, labels, ignore_index=self.ignore_index, term=self.term)
        logits = class_logits(logits, self.outputs_are)
        counted = labels != self.ignore_index
        return logits, labels.masked_fill(~counted, 0), counted


class TokenClassification(TokenMargins):
    """``f = Σ_t log p_t``, minus the loss of the sequence, over the tokens t whose label is not `ignore_index`, and q = 1.

    The options are those of `TokenMargins`, but for the default of `level`.

    Args:
        level: ``token``, as above; ``sequence``: ``f = Σ_t log(p_t / (1 − p_t))``, and q is the mean of 1 − p_t, so that tokens that are
            right outvote one whose label is wrong.
    """

    def __init__(
        self,
        inputs: Inputs = None,
        labels: Key | None = None,
        outputs: Key | None = None,
        reduction: Reduction = "sum",
        level: Level = "token",
        ignore_index: int = IGNORE_INDEX,
        class_weight: list[float] | None = None,
        label_smoothing: float = 0.0,
        outputs_are: OutputsAre = None,
    ) -> None:
        super().__init__(
            inputs, labels, outputs, reduction, level, ignore_index, class_weight, label_smoothing, outputs_are
        )

    def tokens(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        return self.predict(model, batch, ndim=3), self.targets(batch)

    def answers(self, model: nn.Module, batch: Any) -> Answers | None:
        logits, labels, counted = self._checked(model, batch)
        return Answers(logits.log_softmax(-1), labels.masked_fill(~counted, -1), self.term)
