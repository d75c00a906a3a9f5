"""The logistic loss with weighted classes and smoothed labels, as a function of the log-odds f of the right answer.

``ℓ(f) = a·log(1 + exp(−f)) + b·log(1 + exp(f))``: a = 1 and b = 0 is the cross-entropy. Then q = −∂ℓ/∂f = a(1 − p) − b·p
and r = ∂²ℓ/∂f² = (a + b)·p(1 − p), with p = sigmoid(f).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from trak_lightning.errors import DataError, SettingsError


@dataclass(frozen=True)
class Logistic:
    """The logistic loss of margins, with weights a (`right`) and b (`wrong`) of the same shape."""

    right: Tensor
    wrong: Tensor

    def value(self, margins: Tensor) -> Tensor:
        """ℓ of every margin."""
        return self.right * softplus(-margins) + self.wrong * softplus(margins)

    def loss_weight(self, margins: Tensor) -> Tensor:
        """q = −∂ℓ/∂f of every margin."""
        return self.right * torch.sigmoid(-margins) - self.wrong * torch.sigmoid(margins)

    def curvature(self, margins: Tensor) -> Tensor:
        """r = ∂²ℓ/∂f² of every margin."""
        return (self.right + self.wrong) * torch.sigmoid(margins) * torch.sigmoid(-margins)


@dataclass(frozen=True)
class CrossEntropy:
    """The settings of ``torch.nn.CrossEntropyLoss``.

    With smoothing ε, weights w and C classes, ℓ = −(1 − ε)·w_y·log p_y − (ε/C)·Σ_c w_c·log p_c. As a function of the margin f,
    with the probabilities of the other classes among themselves held fixed, that is `Logistic` with a = (1 − ε + ε/C)·w_y and
    b = (ε/C)·Σ_{c≠y} w_c.

    Raises:
        SettingsError: a weight is negative, or ε is not in [0, 1).
    """

    class_weight: Sequence[float] | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        require_smoothing(self.label_smoothing)
        if self.class_weight is not None and not all(weight >= 0 for weight in self.class_weight):
            raise SettingsError(f"class_weight must hold numbers ≥ 0, one per class, got {list(self.class_weight)}")

    @property
    def is_plain(self) -> bool:
        """Whether a = 1 and b = 0."""
        return self.class_weight is None and self.label_smoothing == 0

    def require(self, classes: int) -> None:
        """Raises: DataError: the number of weights is not that of classes."""
        if self.class_weight is not None and len(self.class_weight) != classes:
            raise DataError(
                f"class_weight holds {len(self.class_weight)} weights, and the model returns {classes} logits"
            )

    def logistic(self, labels: Tensor, classes: int, dtype: torch.dtype) -> Logistic:
        """a and b for labels (…) in 0 … C−1."""
        self.require(classes)
        given = [1.0] * classes if self.class_weight is None else list(self.class_weight)
        weight = torch.tensor(given, dtype=dtype, device=labels.device)
        own, share = weight[labels.clamp(0, classes - 1)], self.label_smoothing / classes
        return Logistic((1 - self.label_smoothing + share) * own, share * (weight.sum() - own))

    def rest(self, logits: Tensor, labels: Tensor, margins: Tensor) -> Tensor | None:
        """What ℓ adds to `logistic`, −(ε/C)·Σ_{c≠y} w_c·log(p_c / (1 − p_y)), for logits (…, C), labels and margins (…); None without
        smoothing."""
        if self.label_smoothing == 0:
            return None
        classes = logits.shape[-1]
        weight = margins.new_tensor([1.0] * classes if self.class_weight is None else list(self.class_weight))
        logits = logits.to(margins.dtype)
        own = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        others = weight.sum() - weight[labels]
        return self.label_smoothing / classes * (weight.sum() * own - others * margins - logits @ weight)


def require_smoothing(label_smoothing: float) -> None:
    """Raises: SettingsError: not in [0, 1)."""
    if not 0 <= label_smoothing < 1:
        raise SettingsError(f"label_smoothing must lie in 0 … 1 (without 1), got {label_smoothing}")
