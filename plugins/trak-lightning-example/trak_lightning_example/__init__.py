"""A projector plug-in: the count sketch of Charikar, Chen and Farach-Colton (2002)."""

import torch
from torch import Tensor

from trak_lightning import Projector
from trak_lightning.gradients import ParameterSlot
from trak_lightning.projectors import BlockMap


class CountSketch(Projector):
    """Adds every gradient entry, with a random sign, to a random one of k features. Memory: 12 bytes per gradient entry."""

    trak_api = (2, 0)

    def block(self, slot: ParameterSlot, *, seed: int, device: torch.device) -> BlockMap:
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers for every device
        feature = torch.randint(self.dim, (slot.numel,), generator=generator).to(device)
        sign = (torch.randint(2, (slot.numel,), generator=generator) * 2 - 1).to(device, torch.float32)

        def project(grad: Tensor, out: Tensor) -> None:
            out.index_add_(1, feature, grad.to(out.dtype) * sign)

        return project
