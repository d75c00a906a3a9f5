"""What a task found out about a batch on the way to its outputs, for the loss weights of the same batch."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from trak_lightning.tasks.margin import is_wrapped

Found = TypeVar("Found")


class Recall(Generic[Found]):
    """What was last found out, so that loss weight and curvature need no forward pass of their own.

    It is given back only for the very batch that it came from, and only if its outputs are the same numbers: anything else
    (other weights, the outputs of another extractor) is found out afresh. Holds one batch.
    """

    def __init__(self) -> None:
        self._kept: tuple[Any, Tensor, Found] | None = None

    def keep(self, batch: Any, output: Tensor, found: Found) -> None:
        """Note what `output` was made from; nothing that holds on to a graph."""
        if not is_wrapped(output):  # one sample under vmap, whose values cannot leave it
            self._kept = batch, output.detach(), found

    def of(self, batch: Any, output: Tensor, find: Callable[[], Found]) -> Found:
        """What was found for `batch` and `output`, or what `find` finds."""
        if self._kept is None or self._kept[0] is not batch or not torch.equal(self._kept[1], output.detach()):
            with torch.no_grad():
                self._kept = batch, output.detach(), find()
        return self._kept[2]
