"""Two towers for the emoji and their names that need no transformers, which takes longer to import than all else does."""

import lightning as L
import torch
from torch import nn
from trak_lightning_demos.emoji import vocabulary


class TwoTowers(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 8))
        self.text = nn.EmbeddingBag(len(vocabulary()), 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, input_ids, attention_mask, pixel_values):
        return self.image(pixel_values), self.text(input_ids)
