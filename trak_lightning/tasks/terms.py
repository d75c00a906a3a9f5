"""Samples that are several classification problems each: the tokens of a sequence, the labels of an image."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from trak_lightning.tasks.fields import Inputs, Key
from trak_lightning.tasks.logistic import Logistic
from trak_lightning.tasks.memo import Recall
from trak_lightning.tasks.supervised import SupervisedTask

Reduction: TypeAlias = Literal["sum", "mean"]


@dataclass(frozen=True)
class Terms:
    """The problems of every sample: T at most, of which some do not count.

    Attributes:
        margins: log-odds of the right answers, (B, T); anything that is finite where a term does not count.
        counted: which terms count, (B, T).
        loss: of each term.
    """

    margins: Tensor
    counted: Tensor
    loss: Logistic


class SumOfMargins(SupervisedTask):
    """``f = Σ_t m_t``, the log-odds of the right answers of a sample added up (or their mean); ℓ = Σ_t ℓ_t(m_t) (or the mean).

    ℓ is no function of f alone. By default q = mean_t q_t with q_t = −∂ℓ_t/∂m_t, which is 1 − p_t for the plain
    cross-entropy: the slope of ℓ where all margins of the sample move by the same amount (Park et al. 2023, section 5, take
    the same mean). With `each_its_own`, ``f = Σ_t (q_t/q)·m_t`` and q = mean_t |q_t|, where the ratios are held fixed: then q·∇f
    is −∇ℓ exactly. r = ∂²ℓ/∂f² where all margins move by the same amount: mean_t(r_t) for the mean, mean_t(r_t)/T for the sum.

    A subclass says what the terms are.
    """

    def __init__(
        self,
        inputs: Inputs = None,
        labels: Key | None = None,
        outputs: Key | None = None,
        *,
        reduction: Reduction = "sum",
        each_its_own: bool = False,
    ) -> None:
        super().__init__(inputs, labels, outputs)
        self.reduction = reduction
        self._each_its_own = each_its_own
        self._recall = Recall[Terms]()

    @abstractmethod
    def terms(self, model: nn.Module, batch: Any) -> Terms:
        """The problems of every sample in `batch`, differentiable."""

    def output(self, model: nn.Module, batch: Any) -> Tensor:
        terms = self.terms(model, batch)
        margins = torch.where(terms.counted, terms.margins, 0)
        if self._each_its_own:
            margins = margins * _relative(terms)
        total = margins.sum(1)
        output = total if self.reduction == "sum" else total / _count(terms)
        self._recall.keep(batch, output, replace(terms, margins=terms.margins.detach()))
        return output

    def loss_weight(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return self.weights(model, batch, output)[0]

    def curvature(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return self.weights(model, batch, output)[1]

    def weights(self, model: nn.Module, batch: Any, output: Tensor) -> tuple[Tensor, Tensor]:
        terms = self._recall.of(batch, output, lambda: self.terms(model, batch))
        slopes = terms.loss.loss_weight(terms.margins)
        weight = _mean(terms, slopes.abs() if self._each_its_own else slopes)
        curvature = _mean(terms, terms.loss.curvature(terms.margins))
        return weight, curvature / _count(terms) if self.reduction == "sum" else curvature


def _relative(terms: Terms) -> Tensor:
    """q_t / mean_t |q_t|, (B, T), without gradient; 1 for a sample whose mean is 0."""
    slopes = terms.loss.loss_weight(terms.margins.detach())
    mean = _mean(terms, slopes.abs()).unsqueeze(1)
    return torch.where(mean == 0, torch.ones_like(slopes), slopes / torch.where(mean == 0, 1, mean))


def _mean(terms: Terms, values: Tensor) -> Tensor:
    return torch.where(terms.counted, values, 0).sum(1) / _count(terms)


def _count(terms: Terms) -> Tensor:
    return terms.counted.sum(1).clamp(min=1)
