"""Dense Gaussian projection."""

import torch
from torch import Tensor

from trak_lightning.projectors.dense import DenseProjector
from trak_lightning.projectors.philox import random_normals


class Gaussian(DenseProjector):
    """Independent entries N(0, 1/k). Memory: ``memory_budget`` at most, and tiles."""

    def entries(self, seed: int, start: int, count: int, device: torch.device) -> Tensor:
        return random_normals(seed, start, count, device)
