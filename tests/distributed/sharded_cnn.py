"""Models whose parameters no process holds whole."""

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from trak_lightning.demos import DigitsCNN
from trak_lightning.featurize import batch_audit


class ShardedCNN(DigitsCNN):
    def configure_model(self):
        batch_audit.SHARE = 1  # every batch is audited, not one in 64; in this process, which is no test's
        if isinstance(self.net[0].weight, torch.distributed.tensor.DTensor):
            return
        mesh = self.device_mesh["data_parallel"]
        for layer in self.net:
            if next(layer.parameters(), None) is not None:
                fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)


class MixingLate(ShardedCNN):
    """Samples depend on each other in batches that hold a bright image. The first batch holds none."""

    def forward(self, x):
        logits = super().forward(x)
        return logits + torch.relu(x.flatten(1).sum(1).amax() - 15) * (logits.mean(0) - logits)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(10))

    def forward(self, x):
        return x * self.factor


class WithoutRule(ShardedCNN):
    """One of its layers has no rule of its own."""

    def __init__(self, width=16):
        super().__init__(width=width)
        self.net.append(Scale())
