"""Samples that pose several classification problems each: the tokens of a sequence, the labels of an image."""

import copy
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import Self

from trak_lightning.run.meaning import Meaning
from trak_lightning.tasks.fields import Inputs, Key
from trak_lightning.tasks.logistic import Logistic
from trak_lightning.tasks.memo import Memo
from trak_lightning.tasks.supervised import SupervisedTask
from trak_lightning.tasks.validation import require_one_of

Reduction: TypeAlias = Literal["sum", "mean"]


@dataclass(frozen=True)
class Terms:
    """The classification problems of every sample: T at most, of which some do not count.

    Attributes:
        margins: log-odds of the right answers, (B, T); any finite number where a term does not count.
        counted: whether a term counts, (B, T).
        loss: the loss of each term.
    """

    margins: Tensor
    counted: Tensor
    loss: Logistic


class SumOfMargins(SupervisedTask):
    """``f = Σ_t m_t``, the sum (or mean) of the log-odds m_t of the right answers of a sample; ℓ = Σ_t ℓ_t(m_t) (or the mean).

    ℓ is not a function of f alone. By default q = mean_t q_t with q_t = −∂ℓ_t/∂m_t, which is 1 − p_t for the plain
    cross-entropy: the slope of ℓ where all margins of the sample move by the same amount (Park et al. 2023, section 5, take
    the same mean). With `weigh_each_term`, ``f = Σ_t (q_t/q)·m_t`` and q = mean_t |q_t|, where the ratios are held fixed: then q·∇f
    is −∇ℓ exactly. r = ∂²ℓ/∂f² where all margins move by the same amount: mean_t(r_t) for the mean, mean_t(r_t)/T for the sum.

    A subclass defines the terms.
    """

    term: ClassVar[str] = "answer"
    """What a term is the right one of, in one word."""
    whose: ClassVar[str] = "the right"
    """What comes before the plural of `term`: an answer that a model wrote itself is no right one."""

    shift: ClassVar[int] = 0
    """The position of the label of the first term."""

    def __init__(
        self,
        inputs: Inputs = None,
        labels: Key | None = None,
        outputs: Key | None = None,
        *,
        reduction: Reduction = "sum",
        weigh_each_term: bool = False,
    ) -> None:
        super().__init__(inputs, labels, outputs)
        require_one_of(reduction, "reduction", "sum", "mean")
        self.reduction = reduction
        self._weigh_each_term = weigh_each_term
        self._memo = Memo[Terms]()

    @property
    def is_plain(self) -> bool:
        """Whether the loss of every term is −log p_t, so that q_t = 1 − p_t."""
        return True

    @property
    def meaning(self) -> Meaning:
        weighted = f", each weighted by 1 − p({self.term})" if self._weigh_each_term else ""
        return Meaning(
            f"{self.reduction} of the log-odds of {self.whose} {self.term}s{weighted}",
            f"make {self.whose} {self.term}s more likely",
            "make them less likely",
            "loss_weight" if self.is_plain else None,
            f"mean p({self.term})",
        )

    @abstractmethod
    def terms(self, model: nn.Module, batch: Any) -> Terms:
        """Compute the problems of every sample in `batch`, differentiable."""

    def summed_losses(self) -> Self:
        """A copy for which q·∇f is minus the gradient of Σ_t ℓ_t."""
        found = copy.copy(self)
        found.reduction, found._weigh_each_term, found._memo = "sum", True, Memo[Terms]()
        return found

    def output(self, model: nn.Module, batch: Any) -> Tensor:
        terms = self.terms(model, batch)
        total = self._weighted(terms).sum(1)
        output = total if self.reduction == "sum" else total / _count(terms)
        self._memo.keep(batch, output, replace(terms, margins=terms.margins.detach()))
        return output

    def outcome(self, model: nn.Module, batch: Any) -> Tensor:
        """Compute f, or minus the loss if each term is weighted: the weights in f are those of the model at hand."""
        if not self._weigh_each_term:
            return self.output(model, batch)
        terms = self.terms(model, batch)
        total = -torch.where(terms.counted, terms.loss.value(terms.margins), 0).sum(1)
        return total if self.reduction == "sum" else total / _count(terms)

    def summands(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Compute what each term adds to the output of its sample, (B, T), differentiable, and whether it counts, (B, T)."""
        terms = self.terms(model, batch)
        weighted = self._weighted(terms)
        return weighted if self.reduction == "sum" else weighted / _count(terms).unsqueeze(1), terms.counted

    def _weighted(self, terms: Terms) -> Tensor:
        margins = torch.where(terms.counted, terms.margins, 0)
        return margins * _relative(terms) if self._weigh_each_term else margins

    def loss_weight(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return self.loss_weight_and_curvature(model, batch, output)[0]

    def curvature(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return self.loss_weight_and_curvature(model, batch, output)[1]

    def loss_weight_and_curvature(self, model: nn.Module, batch: Any, output: Tensor) -> tuple[Tensor, Tensor]:
        terms = self._memo.of(batch, output, lambda: self.terms(model, batch))
        slopes = terms.loss.loss_weight(terms.margins)
        weight = _mean(terms, slopes.abs() if self._weigh_each_term else slopes)
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
