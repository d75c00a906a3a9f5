"""Yes or no: log-odds of the true answer, of one question a sample or of several."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from trak_lightning.errors import DataError, SettingsError
from trak_lightning.tasks.fields import Inputs, Key
from trak_lightning.tasks.logistic import Logistic, require_smoothing
from trak_lightning.tasks.supervised import SupervisedTask
from trak_lightning.tasks.terms import Reduction, SumOfMargins, Terms
from trak_lightning.tasks.validation import require_binary


class BinaryClassification(SupervisedTask):
    """Log-odds of the true label: ``f = log(p_y / (1 − p_y))``, which is the logit for label 1 and minus the logit for 0.

    q = 1 − p_y and r = p_y(1 − p_y), as for ``BCEWithLogitsLoss``. The model returns one logit a sample, (B,) or (B, 1);
    labels are 0 or 1, (B,) or (B, 1), of any dtype.

    Args:
        inputs: which entries of a batch the model is called with.
        labels: the entry of a batch that holds the labels.
        outputs: the entry of the model's output that holds the logits.
        pos_weight: of the loss that the model was trained with: samples of label 1 count so many times.
        label_smoothing: of that loss, which then has the labels ε/2 and 1 − ε/2.
    """

    def __init__(
        self,
        inputs: Inputs = None,
        labels: Key | None = None,
        outputs: Key | None = None,
        pos_weight: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(inputs, labels, outputs)
        require_smoothing(label_smoothing)
        _require_positive(pos_weight)
        self.pos_weight = pos_weight
        self.label_smoothing = label_smoothing

    def output(self, model: nn.Module, batch: Any) -> Tensor:
        logits, labels = self.predict(model, batch), self._labels(batch)
        if logits.ndim == 2 and logits.shape[1] == 1:
            logits = logits[:, 0]
        require_binary(logits, labels)
        return _margins(logits, labels)

    def loss_weight(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return self._logistic(batch, output).loss_weight(output)

    def curvature(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return self._logistic(batch, output).curvature(output)

    def _labels(self, batch: Any) -> Tensor:
        labels = self.targets(batch)
        return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels

    def _logistic(self, batch: Any, output: Tensor) -> Logistic:
        return _logistic(self._labels(batch), output, output.new_tensor(self.pos_weight), self.label_smoothing)


class Multilabel(SumOfMargins):
    """``f = Σ_l log(p_l / (1 − p_l))``, the log-odds of the true answer to every label of a sample added up.

    As ``BCEWithLogitsLoss`` over logits (B, L) and labels (B, L) that are 0 or 1. A label that is `ignore_index` or NaN does
    not count.

    Args:
        inputs: which entries of a batch the model is called with.
        labels: the entry of a batch that holds the labels.
        outputs: the entry of the model's output that holds the logits.
        reduction: log-odds of a sample are added up (``sum``), or their ``mean`` is taken.
        level: ``sample``: q is the mean of 1 − p_l; ``label``: every label is weighted with its own 1 − p_l in f, so that
            q·∇f is exactly minus the gradient of the loss.
        ignore_index: what stands for a label that is not known.
        pos_weight: of the loss that the model was trained with, one number a label.
        label_smoothing: of that loss, which then has the labels ε/2 and 1 − ε/2.
    """

    def __init__(
        self,
        inputs: Inputs = None,
        labels: Key | None = None,
        outputs: Key | None = None,
        reduction: Reduction = "sum",
        level: Literal["sample", "label"] = "sample",
        ignore_index: int = -100,
        pos_weight: list[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(inputs, labels, outputs, reduction=reduction, each_its_own=level == "label")
        require_smoothing(label_smoothing)
        _require_positive(*(pos_weight or []))
        self.level = level
        self.ignore_index = ignore_index
        self.pos_weight = pos_weight
        self.label_smoothing = label_smoothing

    def terms(self, model: nn.Module, batch: Any) -> Terms:
        logits, labels = self.predict(model, batch), self.targets(batch)
        if logits.ndim != 2:
            raise DataError(f"the model must return logits of shape (B, labels), got {tuple(logits.shape)}")
        counted = (labels != self.ignore_index) & (labels == labels)
        require_binary(logits, labels, counted)
        labels = torch.where(counted, labels, 0)
        pos_weight = logits.new_tensor(self.pos_weight if self.pos_weight is not None else [1.0] * logits.shape[1])
        if len(pos_weight) != logits.shape[1]:
            raise DataError(
                f"pos_weight holds {len(pos_weight)} weights, and the model returns {logits.shape[1]} logits"
            )
        margins = _margins(logits, labels)
        return Terms(margins, counted, _logistic(labels, margins, pos_weight, self.label_smoothing))


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.where(labels == 1, wide, -wide)


def _logistic(labels: Tensor, margins: Tensor, pos_weight: Tensor, label_smoothing: float) -> Logistic:
    """ℓ = −w·y·log p − (1 − y)·log(1 − p), with y smoothed to ε/2 … 1 − ε/2, as a function of the log-odds of the label."""
    weight, one, half = pos_weight.expand_as(margins), torch.ones_like(margins), label_smoothing / 2
    positive = labels == 1
    return Logistic(
        (1 - half) * torch.where(positive, weight, one),
        half * torch.where(positive, one, weight),
    )


def _require_positive(*weights: float) -> None:
    wrong = [weight for weight in weights if not weight > 0]
    if wrong:
        raise SettingsError(f"pos_weight must be positive, got {wrong[0]}")
