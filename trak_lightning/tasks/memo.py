"""Keep what a task computed for the outputs of a batch, for the loss weights of the same batch."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from trak_lightning.tasks.margin import is_wrapped

Found = TypeVar("Found")


class Memo(Generic[Found]):
    """Remember the last batch, so that loss weight and curvature need no forward pass of their own.

    What was found is returned only for the very batch that it came from, and only if its outputs are the same numbers. For
    anything else (other weights, the outputs of another extractor) it is computed again. Holds one batch.
    """

    def __init__(self) -> None:
        self._kept: tuple[Any, Tensor, Found] | None = None

    def keep(self, batch: Any, output: Tensor, found: Found) -> None:
        """Remember what `output` was made from. `found` must not hold on to a graph."""
        if not is_wrapped(output):  # one sample under vmap: its values cannot leave it
            self._kept = batch, output.detach(), found

    def of(self, batch: Any, output: Tensor, find: Callable[[], Found]) -> Found:
        """Return what was found for `batch` and `output`, or what `find` finds."""
        if self._kept is None or self._kept[0] is not batch or not torch.equal(self._kept[1], output.detach()):
            with torch.no_grad():
                self._kept = batch, output.detach(), find()
        return self._kept[2]
