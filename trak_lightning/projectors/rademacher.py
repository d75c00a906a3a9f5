"""Dense ±1 projection."""

import torch
from torch import Tensor

from trak_lightning.projectors.dense import DenseProjector
from trak_lightning.projectors.philox import random_signs


class Rademacher(DenseProjector):
    """Independent entries ±1/√k, as the paper's experiments use. Memory: ``memory_budget`` at most, and tiles."""

    def entries(self, seed: int, start: int, count: int, device: torch.device) -> Tensor:
        return random_signs(seed, start, count, device).float()
