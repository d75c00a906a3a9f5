"""FTRACE-TREx: Wikipedia sentences that state facts, and questions about these facts (Akyürek et al. 2022), in the format of the
Hugging Face dataset ``ekinakyurek/ftrace``."""

import gzip
import json
from glob import glob
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trak_lightning.errors import DataError
from trak_lightning_demos.pretrained import locate, transformers

INPUT, TARGET = "inputs_pretokenized", "targets_pretokenized"


class FTrace(L.LightningDataModule):
    """Abstracts as the training set and queries as targets: `input_ids`, `attention_mask`, `labels`.

    ``train_set.facts`` and ``test_set.facts`` hold the facts of each sample, ``predicate,object,subject``; a training
    example supports a target if they have a fact in common.

    Args:
        pretrained: model whose tokenizer is used: a name on the hub, or a folder.
        abstracts: files of the configuration ``abstracts``: ``.parquet``, as on the hub, or ``.jsonl``. Paths may have wildcards,
            with ``**`` for folders of any depth.
        queries: files of the configuration ``queries``.
        num_train: number of training samples, drawn at random by `seed`; all if None.
        num_targets: number of targets, drawn in the same way; all if None.
        max_length: number of tokens of an input; longer inputs are cut.
        max_target_length: number of tokens of a target; longer ones are cut.
        batch_size: batch size of both loaders.
        seed: seed of all random choices.
    """

    def __init__(
        self,
        pretrained: str,
        abstracts: list[str],
        queries: list[str],
        num_train: int | None = None,
        num_targets: int | None = None,
        max_length: int = 128,
        max_target_length: int = 32,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.abstracts = abstracts
        self.queries = queries
        self.num_train = num_train
        self.num_targets = num_targets
        self.max_length = max_length
        self.max_target_length = max_target_length
        self.batch_size = batch_size
        self.seed = seed

    def setup(self, stage: str | None = None) -> None:
        with transformers() as library:
            self._tokenizer = library.AutoTokenizer.from_pretrained(locate(self.pretrained))
        train = self._drawn(read_rows(self.abstracts, [INPUT, TARGET, "facts"]), self.num_train, 0)
        test = self._drawn(
            read_rows(self.queries, [INPUT, TARGET, "predicate_id", "obj_uri", "sub_uri"]), self.num_targets, 1
        )
        self.train_set = MaskedSentences(train, [frozenset(row["facts"].split(";")) for row in train])
        self.test_set = MaskedSentences(
            test, [frozenset([f"{row['predicate_id']},{row['obj_uri']},{row['sub_uri']}"]) for row in test]
        )

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True, collate_fn=self._collate)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test_set, batch_size=self.batch_size, collate_fn=self._collate)

    def _drawn(self, rows: list[dict[str, Any]], count: int | None, stream: int) -> list[dict[str, Any]]:
        return [rows[i] for i in np.random.default_rng([self.seed, stream]).permutation(len(rows))[:count]]

    def _collate(self, samples: list[tuple[str, str]]) -> dict[str, Tensor]:
        inputs, targets = zip(*samples, strict=True)
        encoded = self._tokenizer(
            list(inputs), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        answers = self._tokenizer(
            text_target=list(targets),
            padding=True,
            truncation=True,
            max_length=self.max_target_length,
            return_tensors="pt",
        )
        labels = answers["input_ids"].masked_fill(answers["attention_mask"] == 0, -100)
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": labels}


class MaskedSentences(Dataset):
    """Pairs of texts (input, target), each with its facts."""

    def __init__(self, rows: list[dict[str, Any]], facts: list[frozenset[str]]) -> None:
        self.texts = [(str(row[INPUT]), str(row[TARGET])) for row in rows]
        self.facts = facts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[str, str]:
        return self.texts[index]


def read_rows(files: list[str], columns: list[str]) -> list[dict[str, Any]]:
    """Read the rows of ``.parquet``, ``.jsonl`` or ``.jsonl.gz`` files in order; files that a wildcard matches are sorted by name.

    Raises:
        DataError: a file is missing, has another format, or lacks one of the columns.
    """
    rows: list[dict[str, Any]] = []
    # pathlib cannot expand an absolute pattern
    matched = [found for name in files for found in sorted(glob(name, recursive=True)) or [name]]  # noqa: PTH207
    for path in map(Path, matched):
        if not path.is_file():
            raise DataError(f"there is no file {path} (looked in {path.absolute().parent})")
        found = _read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path)
        missing = [column for column in columns if found and column not in found[0]]
        if missing:
            raise DataError(f"{path} has no column {missing[0]!r}; its columns are {', '.join(found[0])}")
        rows += found
    if not rows:
        raise DataError(f"no rows were found in {', '.join(map(str, files)) or 'no file'}")
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"reading {path} needs pyarrow: pip install pyarrow, or write .jsonl with datasets' to_json"
        ) from error
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        try:
            return [json.loads(line) for line in file if line.strip()]
        except ValueError as error:
            raise DataError(f"{path} must hold one JSON object per line, or be a .parquet file: {error}") from error
