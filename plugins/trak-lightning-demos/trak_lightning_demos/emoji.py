"""Emoji and their names: 1,636 pictures by Google's Noto project (Apache-2.0), and a small CLIP for them."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from trak_lightning.demos.held_out import HeldOut
from trak_lightning.errors import DataError
from trak_lightning_demos.finetuning import TransformerModule
from trak_lightning_demos.pretrained import transformers
from trak_lightning_demos.tables import read_table
from trak_lightning_demos.words import BEGIN, END, PAD, Vocabulary, words

DATA = Path(__file__).parent / "data"
PIXELS = 24
LENGTH = 12
"""Number of tokens of a name, begin and end included."""
FREQUENT = 3
"""A target is drawn only if each word of its name is in at least this many names, so that the model can learn the word."""


@cache
def emoji_names() -> list[str]:
    """Return the names of all emoji, in the order of `emoji_images`."""
    return [row["name"] for row in read_table(DATA / "emoji.tsv.gz")]


@cache
def vocabulary() -> Vocabulary:
    """Return the vocabulary of all names."""
    return Vocabulary(emoji_names())


def emoji_images() -> Tensor:
    """Return all pictures, (1636, 3, 24, 24), with values in [−1, 1]."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            "the emoji are a PNG file, and reading it needs Pillow: pip install 'trak-lightning-demos'"
        ) from error
    with Image.open(DATA / "emoji.png") as sheet:
        pixels = torch.from_numpy(np.array(sheet.convert("RGB")))
    rows, columns = pixels.shape[0] // PIXELS, pixels.shape[1] // PIXELS
    tiles = pixels.view(rows, PIXELS, columns, PIXELS, 3).permute(0, 2, 4, 1, 3).flatten(0, 1)
    return tiles[: len(emoji_names())] / 127.5 - 1


class EmojiCLIP(TransformerModule):
    """CLIP with two small transformers, trained from scratch.

    Args:
        width: hidden size of both transformers.
        layers: number of layers of each transformer.
        patch: side of a patch, in pixels.
        lr: peak learning rate.
        weight_decay: weight decay of AdamW.
    """

    def __init__(
        self, width: int = 48, layers: int = 1, patch: int = 8, lr: float = 4e-3, weight_decay: float = 0.1
    ) -> None:
        super().__init__(lr, weight_decay)
        self.save_hyperparameters()
        tower = {
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
        }
        text = {
            "vocab_size": len(vocabulary()),
            "max_position_embeddings": LENGTH,
            "pad_token_id": PAD,
            "bos_token_id": BEGIN,
            "eos_token_id": END,
        }
        with transformers() as library:
            config = library.CLIPConfig(
                text_config={**tower, **text},
                vision_config={**tower, "image_size": PIXELS, "patch_size": patch},
                projection_dim=32,
            )
            self.model = library.CLIPModel(config)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self(**batch, return_loss=True).loss
        return loss


class EmojiDataModule(HeldOut):
    """Emoji with their names, as inputs of ``CLIPModel``: `input_ids`, `attention_mask`, `pixel_values`.

    Targets are drawn from the emoji whose words each occur in at least three names, so that they can be recognized.

    Args:
        num_targets: number of emoji held out as the test set; the others are the training set.
        batch_size: batch size of both loaders.
        seed: seed of the split.
    """

    def __init__(self, num_targets: int = 200, batch_size: int = 128, seed: int = 0) -> None:
        super().__init__(num_targets, batch_size, seed)

    def setup(self, stage: str | None = None) -> None:
        names = [words(name)[: LENGTH - 2] for name in emoji_names()]
        counts: dict[str, int] = {}
        for word in (word for name in names for word in set(name)):
            counts[word] = counts.get(word, 0) + 1
        order = np.random.default_rng(self.seed).permutation(len(names))
        candidates = [int(i) for i in order if all(counts[word] >= FREQUENT for word in names[i])]
        self.require_targets(len(candidates))
        test = candidates[: self.num_targets]
        train = sorted(set(range(len(names))) - set(test))
        self.tokenizer = vocabulary()
        images, numbers = emoji_images(), torch.full((len(names), LENGTH), PAD)
        for row, name in enumerate(emoji_names()):
            encoded = [BEGIN, *vocabulary().encode(name)[: LENGTH - 2], END]
            numbers[row, : len(encoded)] = torch.tensor(encoded)
        self.train_set, self.test_set = (Pairs(images[part], numbers[part], part) for part in (train, test))


class Pairs(Dataset):
    """Images (n, 3, H, W) with texts (n, T), padded with PAD; ``names`` are for display."""

    def __init__(self, images: Tensor, texts: Tensor, positions: list[int]) -> None:
        self._images = images
        self._texts = texts
        self.names = [emoji_names()[position] for position in positions]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        text = self._texts[index]
        return {"input_ids": text, "attention_mask": (text != PAD).long(), "pixel_values": self._images[index]}
