"""Training of the residual networks of the paper."""

from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn

from trak_lightning_demos.resnets import ResNet9, ResNet18

ARCHITECTURES = {"resnet9": ResNet9, "resnet18": ResNet18}


class ImageClassifier(L.LightningModule):
    """Train a residual network with SGD, Nesterov momentum 0.9 and a one-cycle schedule.

    Args:
        architecture: ``resnet9`` for 32×32 images, ``resnet18`` for 224×224.
        num_classes: number of classes.
        lr: peak learning rate.
        weight_decay: weight decay of SGD.
        label_smoothing: label smoothing of the loss; give it to the task too.
        shift: maximum number of pixels by which training images are randomly shifted; they are randomly mirrored too; 0 for
            neither. This augments batches in the training step, so that the samples themselves do not change.
    """

    def __init__(
        self,
        architecture: Literal["resnet9", "resnet18"],
        num_classes: int,
        lr: float = 0.4,
        weight_decay: float = 5e-4,
        label_smoothing: float = 0.0,
        shift: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = ARCHITECTURES[architecture](num_classes)
        self.lr = lr
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.shift = shift

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (B, C) of images (B, 3, H, W)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        if self.shift:
            images = shift_and_mirror(images, self.shift)
        return nn.functional.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)

    def configure_optimizers(self):  # type: ignore[no-untyped-def]
        optimizer = torch.optim.SGD(
            self.parameters(), lr=0.0, momentum=0.9, nesterov=True, weight_decay=self.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def shift_and_mirror(images: Tensor, shift: int) -> Tensor:
    """Shift each image (B, C, H, W) by −shift … shift pixels in both directions, with reflection padding, and mirror it
    horizontally with probability 1/2."""
    B, _, H, W = images.shape
    device = images.device
    padded = nn.functional.pad(images, (shift,) * 4, mode="reflect")
    top, left = torch.randint(2 * shift + 1, (2, B, 1), device=device)
    rows = top + torch.arange(H, device=device)
    across = left + torch.arange(W, device=device)
    mirrored = torch.rand(B, 1, device=device) < 0.5
    across = torch.where(mirrored, across.flip(1), across)
    sample = torch.arange(B, device=device)[:, None, None]
    return padded.movedim(1, -1)[sample, rows[:, :, None], across[:, None, :]].movedim(-1, 1).contiguous()
