"""No projection: features are the gradients themselves."""

import torch
from torch import Tensor

from trak_lightning.gradients import ParameterLayout, ParameterSlot
from trak_lightning.projectors.base import BlockMap, Projector


class Identity(Projector):
    """P = I, k = p. For small models and as an oracle. Memory: none."""

    def __init__(self) -> None:
        pass

    def output_dim(self, layout: ParameterLayout) -> int:
        return layout.numel

    def block(self, slot: ParameterSlot, *, seed: int, device: torch.device) -> BlockMap:
        def place(grad: Tensor, out: Tensor) -> None:
            out[:, slot.offset : slot.offset + slot.numel] += grad

        return place
