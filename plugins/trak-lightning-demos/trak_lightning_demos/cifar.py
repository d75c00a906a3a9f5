"""CIFAR-10 (Krizhevsky 2009): 60,000 images of 32×32 pixels in ten classes; two of them make CIFAR-2."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from trak_lightning.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)

_PIXELS = 3 * 32 * 32


class CIFAR10DataModule(L.LightningDataModule):
    """Pairs (image, label): images (3, 32, 32) standardized by channel, labels 0 … C−1 in the order of `classes`.

    Reads the binary version, which contains no pickled objects: https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz

    Args:
        root: the folder ``cifar-10-batches-bin`` of that archive.
        classes: names of the classes to use, such as cat and dog for CIFAR-2; all ten if None.
        num_train: use only the first so many training images; all if None.
        num_targets: use only the first so many test images; all if None.
        batch_size: batch size of both loaders.
    """

    def __init__(
        self,
        root: str,
        classes: Sequence[str] | None = None,
        num_train: int | None = None,
        num_targets: int | None = None,
        batch_size: int = 512,
    ) -> None:
        super().__init__()
        unknown = [name for name in classes or () if name not in CLASSES]
        if unknown:
            raise DataError(f"CIFAR-10 has no class {unknown[0]!r}; it has {', '.join(CLASSES)}")
        self.root = Path(root)
        self.classes = list(classes or CLASSES)
        self.num_train = num_train
        self.num_targets = num_targets
        self.batch_size = batch_size

    def setup(self, stage: str | None = None) -> None:
        train, labels = self._read(TRAIN_FILES)
        mean, std = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)
        test, test_labels = self._read(TEST_FILES)
        self.train_set = TensorDataset(((train - mean) / std)[: self.num_train], labels[: self.num_train])
        self.test_set = TensorDataset(((test - mean) / std)[: self.num_targets], test_labels[: self.num_targets])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test_set, batch_size=self.batch_size)

    def _read(self, files: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Images (n, 3, 32, 32) in 0 … 1, and labels (n,), of the chosen classes."""
        records = np.concatenate([_records(self.root / file) for file in files])
        number = np.full(len(CLASSES), -1)
        number[[CLASSES.index(name) for name in self.classes]] = np.arange(len(self.classes))
        labels = number[records[:, 0]]
        wanted = labels >= 0
        if not wanted.any():
            raise DataError(f"{self.root} holds no images of {', '.join(self.classes)}")
        images = records[wanted, 1:].reshape(-1, 3, 32, 32)
        return torch.tensor(images, dtype=torch.float32) / 255, torch.tensor(labels[wanted])


def _records(path: Path) -> npt.NDArray[np.uint8]:
    """Read a file of records: (n, 1 + 3072), each a label and the red, green and blue planes of an image."""
    if not path.is_file():
        raise DataError(
            f"there is no {path}. Unpack https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz and name its folder "
            "cifar-10-batches-bin as root; the version for Python holds pickles and is not read."
        )
    found = np.fromfile(path, np.uint8)
    if not len(found) or len(found) % (1 + _PIXELS) or (found[:: 1 + _PIXELS] >= len(CLASSES)).any():
        raise DataError(
            f"{path} is not a file of CIFAR-10's binary version: its {len(found)} bytes are not whole records of 3,073 bytes"
        )
    return found.reshape(-1, 1 + _PIXELS)
