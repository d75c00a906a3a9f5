"""Log-odds of the true answer to a yes-or-no question, one per sample or several."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from trak_lightning.errors import DataError, SettingsError, require_option
from trak_lightning.run.meaning import Meaning
from trak_lightning.tasks.base import Answers
from trak_lightning.tasks.fields import Inputs, Key
from trak_lightning.tasks.logistic import Logistic, require_smoothing
from trak_lightning.tasks.margin import wide
from trak_lightning.tasks.probabilities import OutputsAre, binary_logits, require_choice
from trak_lightning.tasks.state import to_json
from trak_lightning.tasks.sum_of_margins import Reduction, SumOfMargins, Terms
from trak_lightning.tasks.supervised import SupervisedTask
from trak_lightning.tasks.validation import number, numbers, require_binary


class BinaryClassification(SupervisedTask):
    """Log-odds of the true label: ``f = log(p_y / (1 − p_y))``, which is the logit for label 1 and minus the logit for 0.

    q = 1 − p_y and r = p_y(1 − p_y), as for ``BCEWithLogitsLoss``. The model returns one logit per sample, (B,) or (B, 1);
    labels are 0 or 1, (B,) or (B, 1), of any dtype. Batches, models and the options inputs, labels and outputs are those of
    `SupervisedTask`.

    Args:
        pos_weight: of the loss that the model was trained with: how many times a sample of label 1 counts.
        label_smoothing: of that loss, whose labels are then ε/2 and 1 − ε/2.
        outputs_are: ``probabilities`` for a model that ends in a sigmoid and was trained with BCELoss; ``logits`` to use outputs
            that look like probabilities as logits. By default such outputs are refused.
    """

    meaning = Meaning("log-odds of the label", "push towards the label", "push away from it", "output")

    def __init__(
        self,
        inputs: Inputs = None,
        labels: Key | None = None,
        outputs: Key | None = None,
        pos_weight: float = 1.0,
        label_smoothing: float = 0.0,
        outputs_are: OutputsAre = None,
    ) -> None:
        super().__init__(inputs, labels, outputs)
        require_choice(outputs_are)
        self.pos_weight = number(pos_weight, "pos_weight")
        self.label_smoothing = number(label_smoothing, "label_smoothing")
        self.outputs_are = outputs_are
        require_smoothing(self.label_smoothing)
        _require_positive(self.pos_weight)

    def output(self, model: nn.Module, batch: Any) -> Tensor:
        logits, labels = self.predict(model, batch, ndim=1), self._labels(batch)
        if logits.ndim == 2 and logits.shape[1] == 1:
            logits = logits[:, 0]
        require_binary(logits, labels)
        return _margins(binary_logits(logits, labels, self.outputs_are), labels)

    def probabilities(self, model: nn.Module, batch: Any) -> Tensor:
        labels = self._labels(batch)
        p = torch.sigmoid(self.output(model, batch))
        positive = torch.where(labels == 1, p, 1 - p)
        return torch.stack([1 - positive, positive], dim=-1)

    def class_labels(self, batch: Any) -> Tensor:
        return self._labels(batch).long()

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
    """``f = mean_l log p_l``, minus the loss of the sample, over the right answers to all of its labels, and q = 1.

    As ``BCEWithLogitsLoss`` over logits (B, L) and labels (B, L) that are 0 or 1. Both may have more dimensions, such as
    masks of images, (B, 1, H, W). A label that is `ignore_index` or NaN does not count. Batches, models and the options
    inputs, labels and outputs are those of `SupervisedTask`.

    Args:
        reduction: ``mean`` over the labels of a sample, as ``BCEWithLogitsLoss`` takes it, or their ``sum``.
        level: ``label``, as above, so that every label counts by its own 1 − p_l; ``sample``: ``f = mean_l log(p_l / (1 − p_l))``, and
            q is the mean of 1 − p_l, so that answers that are right outvote one that is wrong, and samples with a wrong label may be
            scored as helpful.
        ignore_index: the value of a label that is not known.
        pos_weight: of the loss that the model was trained with: one number, or one per label.
        label_smoothing: of that loss, whose labels are then ε/2 and 1 − ε/2.
        outputs_are: ``probabilities`` for a model that ends in a sigmoid and was trained with BCELoss; ``logits`` to use outputs
            that look like probabilities as logits. By default such outputs are refused.
    """

    def __init__(
        self,
        inputs: Inputs = None,
        labels: Key | None = None,
        outputs: Key | None = None,
        reduction: Reduction = "mean",
        level: Literal["sample", "label"] = "label",
        ignore_index: int = -100,
        pos_weight: list[float] | float | None = None,
        label_smoothing: float = 0.0,
        outputs_are: OutputsAre = None,
    ) -> None:
        super().__init__(inputs, labels, outputs, reduction=reduction, minus_loss=level == "label")
        require_option("level", level, ("sample", "label"))
        require_choice(outputs_are)
        self.level = level
        self.ignore_index = int(ignore_index)
        self.pos_weight = _one_or_numbers(pos_weight)
        self.label_smoothing = number(label_smoothing, "label_smoothing")
        self.outputs_are = outputs_are
        require_smoothing(self.label_smoothing)
        _require_positive(*_listed(self.pos_weight))

    @property
    def is_plain(self) -> bool:
        return self.label_smoothing == 0 and all(weight == 1 for weight in _listed(self.pos_weight))

    def terms(self, model: nn.Module, batch: Any) -> Terms:
        labels = self.targets(batch)
        logits = self.predict(model, batch, ndim=labels.ndim)
        if logits.ndim < 2:
            raise DataError(
                f"the model must return logits of shape (B, labels), got {tuple(logits.shape)}. For one label per sample, use task "
                "binary_classification."
            )
        counted = self._counted(labels)
        require_binary(logits, labels, counted)
        pos_weight = self._pos_weight(logits).flatten()
        logits, labels, counted = (values.flatten(1) for values in (logits, torch.where(counted, labels, 0), counted))
        margins = _margins(binary_logits(logits, labels, self.outputs_are), labels)
        return Terms(margins, counted, _logistic(labels, margins, pos_weight, self.label_smoothing))

    def answers(self, model: nn.Module, batch: Any) -> Answers | None:
        known = self.right_answers(batch)
        if known is None:
            return None
        terms = self.terms(model, batch)
        yes = torch.where(known == 1, terms.margins, -terms.margins)
        return Answers(logsigmoid(torch.stack([-yes, yes], -1)), known, None)

    def right_answers(self, batch: Any) -> Tensor | None:
        """The labels (B, L): 1 for yes, 0 for no, −1 where it is not known. None for masks, whose pixels nobody wants to review one by one."""
        labels = self.targets(batch)
        return torch.where(self._counted(labels), labels, -1).long() if labels.ndim == 2 else None

    def _counted(self, labels: Tensor) -> Tensor:
        return (labels != self.ignore_index) & (labels == labels)

    def _pos_weight(self, logits: Tensor) -> Tensor:
        """One weight per label, broadcast over positions as ``BCEWithLogitsLoss`` does it: over the last dimension."""
        weight = torch.tensor(1.0 if self.pos_weight is None else self.pos_weight, dtype=wide(logits).dtype)
        if weight.ndim and len(weight) != logits.shape[-1]:
            raise DataError(
                f"pos_weight holds {len(weight)} weights, and the model returns {logits.shape[-1]} logits"
                + ("" if logits.ndim == 2 else f" in the last dimension of {tuple(logits.shape)}; give one number")
            )
        return weight.to(logits.device).expand(logits.shape[1:])


def _one_or_numbers(pos_weight: Any) -> float | list[float] | None:
    found = to_json(pos_weight, "pos_weight")
    return numbers(found, "pos_weight") if isinstance(found, list) or found is None else number(found, "pos_weight")


def _listed(pos_weight: float | list[float] | None) -> list[float]:
    return pos_weight if isinstance(pos_weight, list) else [1.0 if pos_weight is None else pos_weight]


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    logits = wide(logits)
    return torch.where(labels == 1, logits, -logits)


def _logistic(labels: Tensor, margins: Tensor, pos_weight: Tensor, label_smoothing: float) -> Logistic:
    """Write ℓ = −w·y·log p − (1 − y)·log(1 − p), with y smoothed to ε/2 or 1 − ε/2, as a function of the log-odds of the label."""
    weight, one, half = pos_weight.expand_as(margins), torch.ones_like(margins), label_smoothing / 2
    positive = labels == 1
    return Logistic((1 - half) * torch.where(positive, weight, one), half * torch.where(positive, one, weight))


def _require_positive(*weights: float) -> None:
    wrong = [weight for weight in weights if not weight > 0]
    if wrong:
        raise SettingsError(f"pos_weight must be positive, got {wrong[0]}")
