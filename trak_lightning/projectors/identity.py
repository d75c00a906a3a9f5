"""No projection: features are the gradients themselves."""

import torch
from torch import Tensor

from trak_lightning.gradients import ParameterLayout, ParameterSlot
from trak_lightning.projectors.base import BlockMap, Projector


class Identity(Projector):
    """P = I, k = p. For small models and as an oracle. Memory: none."""

    def __init__(self) -> None:
        pass

    def columns(self, layout: ParameterLayout) -> dict[str, slice]:
        return {slot.name: slice(slot.offset, slot.offset + slot.numel) for slot in layout}

    def memory_bytes(self, layout: ParameterLayout) -> int:
        return 0

    def block(self, slot: ParameterSlot, *, seed: int, device: torch.device) -> BlockMap:
        def place(grad: Tensor, out: Tensor) -> None:
            out += grad

        return place
