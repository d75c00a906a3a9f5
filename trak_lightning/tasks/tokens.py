"""Sequences of multiclass problems: one a token."""

from abc import abstractmethod
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from trak_lightning.errors import DataError
from trak_lightning.tasks.fields import Inputs, Key
from trak_lightning.tasks.logistic import CrossEntropy
from trak_lightning.tasks.margin import margin
from trak_lightning.tasks.terms import Reduction, SumOfMargins, Terms
from trak_lightning.tasks.validation import require_classes

Level: TypeAlias = Literal["sequence", "token"]

IGNORE_INDEX = -100
"""Labels of tokens that do not count, in torch and in ``transformers``."""


class TokenMargins(SumOfMargins):
    """``f = Σ_t log(p_t / (1 − p_t))`` over the tokens whose label is not `ignore_index`.

    Args:
        inputs: which entries of a batch the model is called with.
        labels: the entry of a batch that holds the labels.
        outputs: the entry of the model's output that holds the logits.
        reduction: margins of a sequence are added up (``sum``, as in the paper), or their ``mean`` is taken.
        level: ``sequence``: q is the mean of 1 − p_t; ``token``: every token is weighted with its own 1 − p_t in f, so that
            q·∇f is exactly minus the gradient of the loss.
        ignore_index: the label of tokens that do not count.
        class_weight: one weight a class, as the loss has them that the model was trained with.
        label_smoothing: of that loss.
    """

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
    ) -> None:
        super().__init__(inputs, labels, outputs, reduction=reduction, each_its_own=level == "token")
        self.level = level
        self.ignore_index = ignore_index
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self._loss = CrossEntropy(class_weight, label_smoothing)

    @abstractmethod
    def tokens(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits (B, T, C), and the labels (B, T) that they predict."""

    def terms(self, model: nn.Module, batch: Any) -> Terms:
        logits, labels = self.tokens(model, batch)
        if logits.ndim != 3:
            raise DataError(f"the model must return logits of shape (B, T, classes), got {tuple(logits.shape)}")
        require_classes(logits, labels, ignore_index=self.ignore_index)
        counted = labels != self.ignore_index
        labels = labels.masked_fill(~counted, 0)
        margins = margin(logits, labels)
        return Terms(margins, counted, self._loss.logistic(labels, logits.shape[-1], margins.dtype))


class TokenClassification(TokenMargins):
    __doc__ = TokenMargins.__doc__

    def tokens(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        return self.predict(model, batch), self.targets(batch)
