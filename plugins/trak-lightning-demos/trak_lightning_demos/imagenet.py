"""ImageNet (Russakovsky et al. 2015), or any other folder with one folder of images per class."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trak_lightning.errors import DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the three channels of ImageNet."""

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")

Image: TypeAlias = Any
"""An image of Pillow, which is imported only when an image is read."""


class ImageNetDataModule(L.LightningDataModule):
    """Pairs (image, label): images (3, size, size) standardized, labels 0 … C−1 in the alphabetical order of folder names.

    Folders are ``root/train/<class>/*.JPEG`` and ``root/val/<class>/*.JPEG``. Models are trained on random crops, randomly
    mirrored (``train_dataloader``); scores are about the same images, center-cropped (``attribution_dataloader``, which
    ``train_split: attribution`` names).

    Args:
        root: the folder with ``train`` and ``val``.
        size: side of the cropped images in pixels; the shorter side is resized to 8/7 of it before center-cropping.
        num_targets: number of images of ``val``, evenly spaced; all if None.
        batch_size: batch size of all loaders.
        num_workers: worker processes of each loader.
    """

    def __init__(
        self, root: str, size: int = 224, num_targets: int | None = None, batch_size: int = 256, num_workers: int = 8
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.size = size
        self.num_targets = num_targets
        self.batch_size = batch_size
        self.num_workers = num_workers

    def setup(self, stage: str | None = None) -> None:
        train, test = self.root / "train", self.root / "val"
        self.classes = class_names(train)
        self.train_set = ImageFolder(train, self.classes, partial(random_crop, size=self.size))
        self.attribution_set = ImageFolder(train, self.classes, partial(centre_crop, size=self.size))
        self.test_set = ImageFolder(test, self.classes, partial(centre_crop, size=self.size), self.num_targets)

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train_set, shuffle=True)

    def attribution_dataloader(self) -> DataLoader:
        """Return a loader of the training images without random crops."""
        return self._loader(self.attribution_set)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test_set)

    def _loader(self, dataset: Dataset, shuffle: bool = False) -> DataLoader:
        return DataLoader(dataset, batch_size=self.batch_size, shuffle=shuffle, num_workers=self.num_workers)


class ImageFolder(Dataset):
    """The images in the folders of some classes, in alphabetical order.

    Args:
        root: a folder with one folder per class.
        classes: names of these folders.
        transform: maps an image to an image of the wanted size.
        limit: number of images to use, evenly spaced; all if None.
    """

    def __init__(
        self, root: Path, classes: list[str], transform: Callable[[Image], Image], limit: int | None = None
    ) -> None:
        self._transform = transform
        self._samples = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((root / name).glob("*"))
            if path.suffix.lower() in SUFFIXES
        ]
        if not self._samples:
            raise DataError(f"no images are in {root}/<class>/, such as {root / classes[0]}/*.JPEG")
        if limit is not None and limit < len(self._samples):
            self._samples = [self._samples[len(self._samples) * number // limit] for number in range(limit)]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self._samples[index]
        with _open(path) as image:
            pixels = np.asarray(self._transform(image.convert("RGB")), np.float32) / 255
        return torch.from_numpy(np.moveaxis((pixels - MEAN) / STD, -1, 0).astype(np.float32)), label


def class_names(folder: Path) -> list[str]:
    """List the folders in a folder, sorted.

    Raises:
        DataError: there are none.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not names:
        raise DataError(f"there are no class folders in {folder}: expected {folder}/<class>/*.JPEG")
    return names


def centre_crop(image: Image, size: int) -> Image:
    """Crop the central square whose side is 7/8 of the shorter side, and resize it."""
    side = min(image.size) * 7 / 8
    left, top = ((length - side) / 2 for length in image.size)
    return image.resize((size, size), _bilinear(), box=(left, top, left + side, top + side))


def random_crop(image: Image, size: int) -> Image:
    """Crop a random region with 8 to 100 % of the area and an aspect ratio of 3:4 to 4:3, resize it, and mirror it with
    probability 1/2 (Szegedy et al. 2015). Uses torch's generator, which differs between workers and epochs."""
    width, height = image.size
    for _ in range(10):
        area = width * height * float(torch.empty(1).uniform_(0.08, 1))
        ratio = float(torch.empty(1).uniform_(float(np.log(3 / 4)), float(np.log(4 / 3))).exp())
        w, h = (area * ratio) ** 0.5, (area / ratio) ** 0.5
        if w <= width and h <= height:
            left, top = (float(torch.rand(1)) * room for room in (width - w, height - h))
            part = image.resize((size, size), _bilinear(), box=(left, top, left + w, top + h))
            break
    else:
        part = centre_crop(image, size)
    return part.transpose(_mirrored()) if torch.rand(1) < 0.5 else part


def _open(path: Path) -> Image:
    try:
        from PIL import Image as pillow
        from PIL import UnidentifiedImageError
    except ImportError:
        raise DataError("reading images needs Pillow: pip install pillow") from None
    try:
        return pillow.open(path)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def _bilinear() -> Any:
    from PIL import Image as pillow

    return pillow.Resampling.BILINEAR


def _mirrored() -> Any:
    from PIL import Image as pillow

    return pillow.Transpose.FLIP_LEFT_RIGHT
