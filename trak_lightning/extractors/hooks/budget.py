"""How many passes through a model the hooks extractor may take."""

from torch import nn

from trak_lightning.errors import UnsupportedModelError


class Deferred(UnsupportedModelError):
    """A batch needs a plan that the budget does not allow now."""


class Budget:
    """Any number of passes."""

    def allows_plan(self, model: nn.Module, size: int) -> bool:
        """Whether to plan for a batch of `size` samples, and rehearse it."""
        return True

    def allows_loop(self, share: float, size: int) -> bool:
        """Whether modules with this share of the parameters, which vmap cannot re-run, may be re-run one sample after the other."""
        return True


UNLIMITED = Budget()
