"""Samples that pose several classification problems each: the tokens of a sequence, the labels of an image."""

import copy
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import Self

from trak_lightning.errors import require_option
from trak_lightning.run.meaning import NEGATIVE_LOSS, Meaning
from trak_lightning.tasks.fields import Inputs, Key
from trak_lightning.tasks.logistic import Logistic
from trak_lightning.tasks.memo import Memo
from trak_lightning.tasks.supervised import SupervisedTask

Reduction: TypeAlias = Literal["sum", "mean"]


@dataclass(frozen=True)
class Terms:
    """The classification problems of every sample: T at most, of which some do not count.

    Attributes:
        margins: log-odds of the right answers, (B, T); any finite number where a term does not count.
        counted: whether a term counts, (B, T).
        loss: the loss of each term, as a function of its margin.
        rest: what the loss of each term adds to that, (B, T); None if nothing.
    """

    margins: Tensor
    counted: Tensor
    loss: Logistic
    rest: Tensor | None = None


class SumOfMargins(SupervisedTask):
    """``f = Σ_t m_t``, the sum (or mean) of the log-odds m_t of the right answers of a sample; ℓ = Σ_t ℓ_t(m_t) (or the mean).

    ℓ is not a function of f alone. By default q = mean_t q_t with q_t = −∂ℓ_t/∂m_t, which is 1 − p_t for the plain
    cross-entropy: the slope of ℓ where all margins of the sample move by the same amount (Park et al. 2023, section 5, take
    the same mean). r = ∂²ℓ/∂f² where all margins move by the same amount: mean_t(r_t) for the mean, mean_t(r_t)/T for the sum. With
    `minus_loss`, f = −ℓ and q = 1 (0 if no term counts): every term then counts by its own q_t, and r = 0.

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
        minus_loss: bool = False,
    ) -> None:
        super().__init__(inputs, labels, outputs)
        require_option("reduction", reduction, ("sum", "mean"))
        self.reduction = reduction
        self._minus_loss = minus_loss
        self._memo = Memo[Terms]()

    @property
    def is_plain(self) -> bool:
        """Whether the loss of every term is −log p_t, so that q_t = 1 − p_t."""
        return True

    @property
    def meaning(self) -> Meaning:
        raises, lowers = f"make {self.whose} {self.term}s more likely", "make them less likely"
        if self._minus_loss:
            likely = self.is_plain and self.reduction == "mean"
            return Meaning(NEGATIVE_LOSS, raises, lowers, "exp" if likely else None, f"geometric mean p({self.term})")
        return Meaning(
            f"{self.reduction} of the log-odds of {self.whose} {self.term}s",
            raises,
            lowers,
            "loss_weight" if self.is_plain else None,
            f"mean p({self.term})",
        )

    @abstractmethod
    def terms(self, model: nn.Module, batch: Any) -> Terms:
        """Compute the problems of every sample in `batch`, differentiable."""

    def summed_losses(self) -> Self:
        """A copy for which q·∇f is minus the gradient of Σ_t ℓ_t."""
        found = copy.copy(self)
        found.reduction, found._minus_loss, found._memo = "sum", True, Memo[Terms]()
        return found

    def output(self, model: nn.Module, batch: Any) -> Tensor:
        terms = self.terms(model, batch)
        total = self._values(terms).sum(1)
        output = total if self.reduction == "sum" else total / _count(terms)
        self._memo.keep(batch, output, replace(terms, margins=terms.margins.detach(), rest=None))
        return output

    def summands(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Compute what each term adds to the output of its sample, (B, T), differentiable, and whether it counts, (B, T)."""
        terms = self.terms(model, batch)
        values = self._values(terms)
        return values if self.reduction == "sum" else values / _count(terms).unsqueeze(1), terms.counted

    def _values(self, terms: Terms) -> Tensor:
        values = terms.margins
        if self._minus_loss:
            values = -terms.loss.value(terms.margins) - (0 if terms.rest is None else terms.rest)
        return torch.where(terms.counted, values, 0)

    def loss_weight(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return self.loss_weight_and_curvature(model, batch, output)[0]

    def curvature(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return self.loss_weight_and_curvature(model, batch, output)[1]

    def loss_weight_and_curvature(self, model: nn.Module, batch: Any, output: Tensor) -> tuple[Tensor, Tensor]:
        terms = self._memo.of(batch, output, lambda: self.terms(model, batch))
        if self._minus_loss:
            return terms.counted.any(1).to(output.dtype), torch.zeros_like(output)
        weight = _mean(terms, terms.loss.loss_weight(terms.margins))
        curvature = _mean(terms, terms.loss.curvature(terms.margins))
        return weight, curvature / _count(terms) if self.reduction == "sum" else curvature


def _mean(terms: Terms, values: Tensor) -> Tensor:
    return torch.where(terms.counted, values, 0).sum(1) / _count(terms)


def _count(terms: Terms) -> Tensor:
    return terms.counted.sum(1).clamp(min=1)
