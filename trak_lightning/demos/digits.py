"""Handwritten digits: the 1,797 images of 8×8 pixels that ship with scikit-learn, and a small CNN for them."""

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from trak_lightning.demos.held_out import HeldOut
from trak_lightning.errors import DataError, needed_for


class DigitsCNN(L.LightningModule):
    """Two convolutions and two linear layers.

    Args:
        width: channels of the first convolution; the second has twice as many.
        lr: peak learning rate of the one-cycle schedule.
        weight_decay: of SGD with Nesterov momentum 0.9.
    """

    def __init__(self, width: int = 16, lr: float = 0.05, weight_decay: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.weight_decay = weight_decay
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * 16, 32),
            nn.ReLU(inplace=True),
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
        optimizer = torch.optim.SGD(
            self.parameters(), lr=0.0, momentum=0.9, nesterov=True, weight_decay=self.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class DigitsDataModule(HeldOut):
    """The digits as (image, label): images (1, 8, 8) standardised, labels 0 … 9; a fixed split by `seed`.

    Args:
        num_targets: images held out as the test set; the others are the training set.
        batch_size: of both loaders.
        seed: of the split.
        label_noise: share of the training labels that are replaced by another digit; `mislabeled` has their positions.
    """

    class_names = tuple("0123456789")

    def __init__(self, num_targets: int = 400, batch_size: int = 64, seed: int = 0, label_noise: float = 0.0) -> None:
        super().__init__(num_targets, batch_size, seed)
        if not 0 <= label_noise < 1:
            raise DataError(f"label_noise must be a share of the training set in [0, 1), got {label_noise}")
        self.label_noise = label_noise

    def setup(self, stage: str | None = None) -> None:
        with needed_for("the data of the quick start", "'trak-lightning[demos]'"):
            from sklearn.datasets import load_digits
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
        images = (images - images.mean()) / images.std()
        labels = torch.tensor(digits.target)
        self.require_targets(len(labels) - 1)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed))
        test, train = order[: self.num_targets], order[self.num_targets :]
        noisy, self.mislabeled = _with_noise(labels[train], self.label_noise, self.seed)
        self.train_set = TensorDataset(images[train], noisy)
        self.test_set = TensorDataset(images[test], labels[test])


def _with_noise(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Labels of which some are replaced by another class, and the positions of these."""
    generator = torch.Generator().manual_seed(seed + 1)
    positions = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    noisy = labels.clone()
    noisy[positions] = (noisy[positions] + torch.randint(1, 10, (len(positions),), generator=generator)) % 10
    return noisy, positions.sort().values
