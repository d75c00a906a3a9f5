"""Another network for the digits, with a tenth of the labels wrong: a fourth problem, on which nothing was tuned."""

import lightning as L
import torch
from torch import Tensor, nn


class DigitsMLP(L.LightningModule):
    """Two hidden layers with tanh on the 64 pixels; Adam.

    Args:
        width: of the hidden layers.
        lr: learning rate.
    """

    def __init__(self, width: int = 64, lr: float = 3e-3) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of images (B, 1, 8, 8)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
