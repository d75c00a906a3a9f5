"""The interface of a gradient extractor."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import UnsupportedModelError
from trak_lightning.gradients import ParameterLayout, Sink
from trak_lightning.tasks.base import Task


@dataclass(frozen=True)
class RuleUse:
    """One line of an extractor's account: a rule, the number of layers that use it, 0 where the model is not taken apart, and the number of
    entries of their parameters."""

    rule: str
    layers: int
    parameters: int


class GradientExtractor(ABC):
    """Computes ∇_θ f(z_b; θ) for every sample b of a batch and streams it, block by block, to a sink.

    Laws (checked by `trak_lightning.testing.ExtractorConformance`):

    * exact: blocks of one parameter add up to the gradient that autograd computes for a batch of that sample only, fetched and
      collated again;
    * complete: every parameter of the layout on which the output depends has a block; a parameter on which it does not
      depend may have none, which means zero; no parameter outside the layout has one;
    * independent of the batch: a sample's gradient does not depend on the other samples;
    * no side effects: the model is restored afterwards (parameters, buffers, hooks, ``requires_grad``, ``.grad``).

    Peak memory should be that of one block, not of the sum of all.
    """

    one_by_one: ClassVar[bool] = False
    """Whether samples are always fetched and differentiated one at a time, so that no assumption about batches is made."""

    falls_back: ClassVar[bool] = False
    """Whether `fall_back` may name another extractor, which the user did not choose."""

    @abstractmethod
    def extract(self, model: nn.Module, task: Task, batch: SampleBatch, layout: ParameterLayout, sink: Sink) -> Tensor:
        """Push the gradient blocks of `batch` to `sink`; return the detached outputs f, (B,).

        Called with gradients enabled and the model in eval mode. Blocks are valid only during the call of the sink. Call the
        task within ``batch_of(size)`` for a batch of `size` samples. If this raises, discard all blocks of the batch.

        Raises:
            UnsupportedModelError: the gradient of some parameter cannot be computed exactly. Raised
                before the first block of the batch reaches the sink, if that can be known then.
        """

    @property
    def kinds(self) -> int:
        """How many kinds of batches this extractor has seen, and variants of them; when the number grows, the caller verifies
        the batch."""
        return 0

    def audits(self, model: nn.Module, batch: SampleBatch) -> bool:
        """Whether `extract` will certainly compare the gradients of this batch with autograd itself, since it is of a new kind."""
        return False

    def fall_back(self, model: nn.Module, refusal: UnsupportedModelError) -> "GradientExtractor | None":
        """The extractor to use instead for a batch that this one refused, or computed wrongly; None if there is none."""
        return None

    def distrust(self, model: nn.Module) -> bool:
        """Note that this extractor computed wrong gradients; return whether it computes all later batches in another way."""
        return False

    def account(self, model: nn.Module, task: Task, batch: SampleBatch, layout: ParameterLayout) -> list[RuleUse]:
        """Which rule computes which parameters of the layout; numbers of parameters add up to p. `batch` must be typical of
        later ones.

        Raises:
            UnsupportedModelError: the gradient of some parameter cannot be computed exactly. Names the parameter.
        """
        return [RuleUse(type(self).__name__.lower(), 0, layout.numel)]


def describe(account: Sequence[RuleUse]) -> str:
    """Format an account as one line: ``Linear ×12, LayerNorm ×5``."""
    return ", ".join(f"{use.rule} ×{use.layers}" if use.layers > 1 else use.rule for use in account)
