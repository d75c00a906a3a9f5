"""MS COCO captions: images with captions that people wrote, as published on https://cocodataset.org."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, Dataset, default_collate

from trak_lightning.errors import DataError
from trak_lightning_demos.pretrained import locate, transformers


class CocoCaptions(L.LightningDataModule):
    """Images and captions as inputs of CLIP: `input_ids`, `attention_mask`, `pixel_values`.

    Args:
        pretrained: model whose tokenizer and image processor are used: a name on the hub, or a folder.
        train_captions: the JSON file of captions, such as ``captions_train2014.json``.
        train_images: the folder with the images that `train_captions` names, such as ``train2014``.
        test_captions: the JSON file of captions of the targets.
        test_images: the folder with the images of the targets.
        captions_per_image: number of captions to use of each image; each makes a pair.
        num_train: number of training pairs, drawn at random by `seed`; all if None.
        num_targets: number of targets, drawn in the same way; all if None.
        max_length: number of tokens that every caption is cut or padded to.
        batch_size: batch size of both loaders.
        num_workers: worker processes that read images.
        seed: seed of all random choices.
    """

    def __init__(
        self,
        pretrained: str,
        train_captions: str | Path,
        train_images: str | Path,
        test_captions: str | Path,
        test_images: str | Path,
        captions_per_image: int = 1,
        num_train: int | None = None,
        num_targets: int | None = None,
        max_length: int = 77,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if captions_per_image < 1:
            raise DataError(f"captions_per_image must be a positive number, got {captions_per_image}")
        self.pretrained = pretrained
        self.train_files = Path(train_captions), Path(train_images)
        self.test_files = Path(test_captions), Path(test_images)
        self.captions_per_image = captions_per_image
        self.num_train = num_train
        self.num_targets = num_targets
        self.max_length = max_length
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

    def setup(self, stage: str | None = None) -> None:
        with transformers() as library:
            self._tokenizer = library.AutoTokenizer.from_pretrained(locate(self.pretrained))
            self._images = library.AutoImageProcessor.from_pretrained(locate(self.pretrained))
        self.train_set = self._pairs(*self.train_files, self.num_train, 0)
        self.test_set = self._pairs(*self.test_files, self.num_targets, 1)

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train_set, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test_set, shuffle=False)

    def _loader(self, dataset: Dataset, shuffle: bool) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=default_collate,
        )

    def _pairs(self, captions: Path, images: Path, count: int | None, stream: int) -> "CaptionedImages":
        rows = read_captions(captions, self.captions_per_image)
        order = np.random.default_rng([self.seed, stream]).permutation(len(rows))[:count]
        chosen = [(images / rows[i][0], rows[i][1]) for i in order]
        if chosen and not chosen[0][0].is_file():
            raise DataError(f"there is no image {chosen[0][0]}, which {captions} names. Name the folder that has it.")
        return CaptionedImages(chosen, self._tokenizer, self._images, self.max_length)


def read_captions(path: Path, captions_per_image: int) -> list[tuple[str, str]]:
    """Read pairs (file name, caption), in the order of the images in the file.

    Raises:
        DataError: this is not a file of captions.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path} (looked in {path.absolute().parent})")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        captions: dict[int, list[str]] = {image["id"]: [] for image in found["images"]}
        for annotation in found["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"].strip())
        return [
            (image["file_name"], caption)
            for image in found["images"]
            for caption in captions[image["id"]][:captions_per_image]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a file of COCO captions, with images (id, file_name) and annotations (image_id, caption): "
            f"{type(error).__name__}: {error}"
        ) from error


class CaptionedImages(Dataset):
    """Images, read on access, with their captions; ``captions`` and ``paths`` are for display."""

    def __init__(self, pairs: list[tuple[Path, str]], tokenizer: Any, processor: Any, max_length: int) -> None:
        self.paths = [path for path, _ in pairs]
        self.captions = [caption for _, caption in pairs]
        self._tokenizer = tokenizer
        self._processor = processor
        self._max_length = max_length

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            pixels = self._processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        text = self._tokenizer(
            self.captions[index],
            padding="max_length",
            truncation=True,
            max_length=self._max_length,
            return_tensors="pt",
        )
        return {"input_ids": text["input_ids"][0], "attention_mask": text["attention_mask"][0], "pixel_values": pixels}
