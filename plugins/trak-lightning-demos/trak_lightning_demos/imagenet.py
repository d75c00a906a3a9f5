"""ImageNet (Russakovsky et al. 2015), or any other folder with a folder of images for each class."""

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
"""Of the three channels of ImageNet."""

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")

Image: TypeAlias = Any
"""Of Pillow."""


class ImageNetDataModule(L.LightningDataModule):
    """Pairs (image, label): images (3, size, size) standardised, labels 0 … C−1 in the alphabetical order of folder names.

    Folders are ``root/train/<class>/*.JPEG`` and ``root/val/<class>/*.JPEG``. Models are trained on random crops, mirrored at
    random (``train_dataloader``); what is attributed to are the same images cropped at the centre (``attribution_dataloader``,
    which ``train_split: attribution`` names).

    Args:
        root: the folder with ``train`` and ``val``.
        size: pixels of a side; the shorter side of an image is made 8/7 as long before its centre is taken.
        num_targets: images of ``val``, evenly spread; all if None.
        batch_size: of all loaders.
        num_workers: of all loaders.
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
        """The training images without random crops."""
        return self._loader(self.attribution_set)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test_set)

    def _loader(self, dataset: Dataset, shuffle: bool = False) -> DataLoader:
        return DataLoader(dataset, batch_size=self.batch_size, shuffle=shuffle, num_workers=self.num_workers)


class ImageFolder(Dataset):
    """The images in the folders of some classes, in alphabetical order.

    Args:
        root: holds a folder for each class.
        classes: names of these folders.
        transform: from an image to an image of the wanted size.
        limit: so many of the images, evenly spread; all if None.
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
    """The folders in a folder, sorted.

    Raises:
        DataError: there are none.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not names:
        raise DataError(f"there are no folders of classes in {folder}: expected {folder}/<class>/*.JPEG")
    return names


def centre_crop(image: Image, size: int) -> Image:
    """The central square of side 7/8 of the shorter side, resized."""
    side = min(image.size) * 7 / 8
    left, top = ((length - side) / 2 for length in image.size)
    return image.resize((size, size), _bilinear(), box=(left, top, left + side, top + side))


def random_crop(image: Image, size: int) -> Image:
    """A random part with 8 to 100 % of the area and sides of ratio 3:4 to 4:3, resized, mirrored half of the time (Szegedy et
    al. 2015). Draws from torch's generator, which differs between workers and epochs."""
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
    except ImportError as error:
        raise DataError("images are read with Pillow: pip install pillow") from error
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
