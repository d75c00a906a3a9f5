"""Wrong labels."""

import torch
from torch import Tensor


def with_noise(labels: Tensor, share: float, *, seed: int) -> Tensor:
    """Return labels 0 … 9 of which a share, drawn at random, are replaced by another class."""
    generator = torch.Generator().manual_seed(seed + 1)
    positions = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    noisy = labels.clone()
    noisy[positions] = (noisy[positions] + torch.randint(1, 10, (len(positions),), generator=generator)) % 10
    return noisy
