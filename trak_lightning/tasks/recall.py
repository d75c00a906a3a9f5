"""What a task found out about a batch on the way to its outputs, for the loss weights of the same batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Recall:
    """The values last computed, so that loss weight and curvature need no forward pass of their own.

    They are given back only for the very batch they were computed from, and only if its outputs are the same numbers:
    anything else (other weights, the outputs of another extractor) is computed afresh. Holds one batch.
    """

    def __init__(self) -> None:
        self._batch: Any = None
        self._output: Tensor | None = None
        self._values: Tensor | None = None

    def keep(self, batch: Any, output: Tensor, values: Tensor) -> None:
        """Note the `values` that `output` was made from."""
        if torch._C._functorch.is_functorch_wrapped_tensor(output):
            return  # one sample under vmap, whose values cannot leave it
        self._batch, self._output, self._values = batch, output.detach(), values.detach()

    def values(self, batch: Any, output: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Those of `batch`; `compute` makes them."""
        known = self._batch is batch and self._output is not None and torch.equal(self._output, output.detach())
        if not known:
            with torch.no_grad():
                values = compute()
            self._batch, self._output, self._values = batch, output.detach(), values
        assert self._values is not None
        return self._values
