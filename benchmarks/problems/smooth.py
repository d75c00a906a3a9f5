"""A convolutional network whose training is smooth in the weights of its samples, for the digits."""

import lightning as L
import torch
from torch import Tensor, nn


class SmoothCNN(L.LightningModule):
    """Two convolutions and two linear layers with GELU and average pooling; AdamW with a large `eps`, one cycle.

    Args:
        width: channels of the first convolution; the second has twice as many.
        lr: peak learning rate.
        eps: of AdamW.
    """

    def __init__(self, width: int = 8, lr: float = 3e-3, eps: float = 1e-3) -> None:
        super().__init__()
        self.lr = lr
        self.eps = eps
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.GELU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * 16, 32),
            nn.GELU(),
            nn.Linear(32, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of images (B, 1, 8, 8)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def configure_optimizers(self):  # type: ignore[no-untyped-def]
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, eps=self.eps)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]
