"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): gray images 28×28 of ten kinds of clothing, and a small CNN for them."""

import gzip
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from problems.noise import with_noise
from trak_lightning.errors import DataError

ROOT = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the four files."""


class FashionCNN(L.LightningModule):
    """Two strided convolutions with group normalization, and a linear layer; trained with AdamW, one cycle.

    Args:
        width: channels of the first convolution; the second and third have twice and four times as many.
        lr: peak learning rate.
        weight_decay: of AdamW.
    """

    def __init__(self, width: int = 16, lr: float = 3e-3, weight_decay: float = 0.05) -> None:
        super().__init__()
        self.lr = lr
        self.weight_decay = weight_decay
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1),
            nn.GroupNorm(4, width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.GroupNorm(4, 2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            nn.GroupNorm(4, 4 * width),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * width * 16, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of images (B, 1, 28, 28)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def configure_optimizers(self):  # type: ignore[no-untyped-def]
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class PlainCNN(L.LightningModule):
    """Two strided convolutions and a linear layer, without normalization; SGD with momentum at a constant learning rate.

    Args:
        width: channels of the first convolution; the second has twice as many.
        lr: learning rate.
    """

    def __init__(self, width: int = 16, lr: float = 0.02) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 49, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of images (B, 1, 28, 28)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class FashionData(L.LightningDataModule):
    """The first images of both parts of Fashion-MNIST, standardised.

    Args:
        root: folder with the four files of the data set (``train-images-idx3-ubyte.gz`` and so on).
        num_train: training images.
        num_targets: of the test images.
        batch_size: of both loaders.
        start: number of the first image of both parts.
        label_noise: share of the training labels that are replaced by another kind of clothing.
    """

    def __init__(
        self,
        root: str | Path = ROOT,
        num_train: int = 6000,
        num_targets: int = 500,
        batch_size: int = 64,
        start: int = 0,
        label_noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.num_train = num_train
        self.num_targets = num_targets
        self.batch_size = batch_size
        self.start = start
        self.label_noise = label_noise

    def setup(self, stage: str | None = None) -> None:
        images = {part: _idx(self.root / f"{part}-images-idx3-ubyte.gz") for part in ("train", "t10k")}
        labels = {part: _idx(self.root / f"{part}-labels-idx1-ubyte.gz") for part in ("train", "t10k")}
        mean, std = images["train"].mean(), images["train"].std()

        def dataset(part: str, size: int, noise: float) -> TensorDataset:
            rows = slice(self.start, self.start + size)
            pixels = (images[part][rows].astype(np.float32) - mean) / std
            return TensorDataset(
                torch.tensor(pixels, dtype=torch.float32).unsqueeze(1),
                with_noise(torch.tensor(labels[part][rows].astype(np.int64)), noise, seed=self.start),
            )

        self.train_set = dataset("train", self.num_train, self.label_noise)
        self.test_set = dataset("t10k", self.num_targets, 0.0)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test_set, batch_size=self.batch_size)


def _idx(path: Path) -> np.ndarray:
    """An array in the IDX format of MNIST: a header of big-endian integers, then bytes."""
    if not path.is_file():
        raise DataError(
            f"there is no {path}. Install Debian's package dataset-fashion-mnist, or download the four files from "
            "https://github.com/zalandoresearch/fashion-mnist and name their folder."
        )
    raw = gzip.decompress(path.read_bytes())
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape.astype(int))
