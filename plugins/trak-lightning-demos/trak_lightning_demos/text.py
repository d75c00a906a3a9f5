"""Text classification with any pretrained transformer that ``AutoModelForSequenceClassification`` loads, on any table of texts and
labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, Dataset

from trak_lightning.errors import DataError
from trak_lightning.model.parameters import select
from trak_lightning_demos.finetuning import TransformerModule
from trak_lightning_demos.glosses import GLOSSES
from trak_lightning_demos.pretrained import locate, transformers
from trak_lightning_demos.tables import columns, read_table


class TextClassifier(TransformerModule):
    """Train a pretrained transformer with a new classification head, with AdamW and a one-cycle schedule.

    Args:
        pretrained: name of a model on the Hugging Face hub, or a folder.
        num_labels: number of classes.
        trainable: patterns of the parameters to train (see `trak_lightning.model.parameters.select`); all if None.
        lr: peak learning rate.
        weight_decay: weight decay of AdamW.
    """

    def __init__(
        self,
        pretrained: str,
        num_labels: int,
        trainable: list[str] | None = None,
        lr: float = 5e-5,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, weight_decay)
        self.save_hyperparameters()
        with transformers() as library:
            self.model = library.AutoModelForSequenceClassification.from_pretrained(
                locate(pretrained), num_labels=num_labels
            )
        self.model.train()  # it is loaded in eval mode, which Lightning would keep
        trained = select(self.model, trainable)
        self.model.requires_grad_(False)
        for parameter in trained.values():
            parameter.requires_grad = True


class TextDataModule(L.LightningDataModule):
    """Texts with labels from ``.csv`` or ``.tsv`` files; if none is named, WordNet's glosses with the category of the defined word.

    A batch is the output of the tokenizer's ``pad``, with ``labels``. Labels are numbered in alphabetical order.

    Args:
        pretrained: model whose tokenizer is used: a name on the hub, or a folder.
        train_file: training samples; the glosses if None.
        test_file: targets; if None, `num_targets` of the training file are held out.
        text: the column of the text, or two columns to classify pairs.
        label: the column of the label.
        num_train: number of training samples, drawn at random by `seed`; all if None.
        num_targets: number of targets, drawn in the same way; all of `test_file` if None.
        label_noise: fraction of the training labels that are replaced by another label, drawn by `seed`; ``mislabeled`` holds
            their positions.
        max_length: number of tokens of a text; longer texts are cut.
        batch_size: batch size of both loaders.
        seed: seed of all random choices.
    """

    def __init__(
        self,
        pretrained: str,
        train_file: str | None = None,
        test_file: str | None = None,
        text: Sequence[str] = ("gloss",),
        label: str = "category",
        num_train: int | None = None,
        num_targets: int | None = None,
        label_noise: float = 0.0,
        max_length: int = 128,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if test_file is None and num_targets is None:
            raise DataError("give a test_file, or num_targets to hold out of the training file")
        if not 0 <= label_noise < 1:
            raise DataError(f"label_noise must be a share of the training set in [0, 1), got {label_noise}")
        self.pretrained = pretrained
        self.train_file = train_file or GLOSSES
        self.test_file = test_file
        self.text = list(text)
        self.label = label
        self.num_train = num_train
        self.num_targets = num_targets
        self.label_noise = label_noise
        self.max_length = max_length
        self.batch_size = batch_size
        self.seed = seed

    def setup(self, stage: str | None = None) -> None:
        with transformers() as library:
            self.tokenizer = library.AutoTokenizer.from_pretrained(locate(self.pretrained))
        train = self._shuffled(self.train_file, 0)
        if self.test_file is None:
            assert self.num_targets is not None
            if not 0 < self.num_targets < len(train):
                raise DataError(f"num_targets must lie in 1 … {len(train) - 1}, got {self.num_targets}")
            test, train = train[: self.num_targets], train[self.num_targets :]
        else:
            test = self._shuffled(self.test_file, 1)[: self.num_targets]
        train = train[: self.num_train]
        self.labels = sorted({label for *_, label in train})
        unknown = {label for *_, label in test} - set(self.labels)
        if unknown:
            raise DataError(f"label {min(unknown)!r} is among the targets and not among the training samples")
        numbers, self.mislabeled = self._mislabel(np.array([self.labels.index(label) for *_, label in train]))
        self.class_names = self.labels
        self.train_set = self._encoded(train, numbers.tolist())
        self.test_set = self._encoded(test, [self.labels.index(label) for *_, label in test])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True, collate_fn=self._collate)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test_set, batch_size=self.batch_size, collate_fn=self._collate)

    def _shuffled(self, path: str | Path, stream: int) -> list[tuple[str, ...]]:
        rows = columns(read_table(path), [*self.text, self.label], path)
        return [rows[row] for row in np.random.default_rng([self.seed, stream]).permutation(len(rows))]

    def _mislabel(self, numbers: Any) -> tuple[Any, Any]:
        """Replace some labels by another label; return the labels and the positions of the replaced ones."""
        random = np.random.default_rng([self.seed, 2])
        planted = np.zeros(len(numbers), dtype=bool)
        planted[random.permutation(len(numbers))[: round(self.label_noise * len(numbers))]] = True
        moved = random.integers(1, max(2, len(self.labels)), len(numbers))
        return np.where(planted, (numbers + moved) % len(self.labels), numbers), np.flatnonzero(planted)

    def _encoded(self, rows: list[tuple[str, ...]], labels: list[int]) -> "EncodedTexts":
        texts = [[row[column] for row in rows] for column in range(len(self.text))]
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
        return EncodedTexts(
            [
                {name: values[row] for name, values in encoded.items()} | {"labels": label}
                for row, label in enumerate(labels)
            ]
        )

    def _collate(self, samples: list[dict[str, Any]]) -> Any:
        return self.tokenizer.pad(samples, return_tensors="pt")


class EncodedTexts(Dataset):
    """Tokenized texts, each with its label."""

    def __init__(self, samples: list[dict[str, Any]]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._samples[index]
