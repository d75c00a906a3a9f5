"""The interface of a gradient extractor."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from trak_lightning.gradients import ParameterLayout, Sink
from trak_lightning.tasks.base import Task


@dataclass(frozen=True)
class RuleUse:
    """One line of an extractor's account: what does some of the parameters, in how many layers, and how many numbers
    these parameters have."""

    rule: str
    layers: int
    parameters: int


class GradientExtractor(ABC):
    """Computes ∇_θ f(z_b; θ) for every sample b of a batch and streams it, block by block, to a sink.

    Laws (checked by `trak_lightning.testing.ExtractorConformance`):

    * exact: blocks of one parameter add up to the gradient that autograd gives for that sample alone;
    * complete: every parameter of the layout on which the output depends arrives; one on which it does not depend may
      be left out, which means zero; none outside the layout ever arrives;
    * independent of the batch: a sample's gradient does not depend on the other samples;
    * harmless: the model is left as it was found (parameters, buffers, hooks, ``requires_grad``, ``.grad``).

    Peak memory should be that of one block, not of the sum of all.
    """

    @abstractmethod
    def extract(self, model: nn.Module, task: Task, batch: Any, layout: ParameterLayout, sink: Sink) -> Tensor:
        """Push the gradient blocks of `batch` to `sink`; return the detached outputs f, (B,).

        Called with gradients enabled and the model in eval mode. Blocks are valid only during the call of the sink.

        Raises:
            UnsupportedModelError: the gradient of some parameter cannot be computed exactly. Before the sink is given
                anything of this batch, wherever that can be known.
        """

    def account(self, model: nn.Module, task: Task, batch: Any, layout: ParameterLayout) -> list[RuleUse]:
        """Who does which parameter of the layout; numbers of parameters add up to p. `batch` is like those to come.

        Raises:
            UnsupportedModelError: the gradient of some parameter cannot be computed exactly. Names it.
        """
        return [RuleUse(type(self).__name__.lower(), 1, layout.numel)]


def describe(account: Sequence[RuleUse]) -> str:
    """An account in one line: ``Linear ×12, LayerNorm ×5``."""
    return ", ".join(f"{use.rule} ×{use.layers}" if use.layers > 1 else use.rule for use in account)
