"""Conversations as a dataset, and a DataModule of training conversations and questions."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from trak_lightning.chat import loading
from trak_lightning.chat.answers import Answer, Generation, ask, combination, read_answers
from trak_lightning.chat.encoding import Encoded, Encoder, is_plain
from trak_lightning.chat.records import Records, Source, TrainOn
from trak_lightning.errors import DataError, SettingsError
from trak_lightning.tasks.tokens import IGNORE_INDEX

log = logging.getLogger(__name__)


class ChatDataset(Dataset):
    """Conversations as ``{"input_ids": (T,), "labels": (T,)}``; other columns stay in `records`.

    All examples are encoded at once, so that one that cannot be is named before anything is computed. Packing would not
    change a gradient, and is not needed: `collate` pads on the right, which a causal model does not see.

    Args:
        source: a file (see `trak_lightning.chat.records`), a dataset, or a list of mappings.
        encoder: encodes each example.

    Raises:
        DataError: as `Records.read` and `Encoder.encode`.
    """

    def __init__(self, source: Source, encoder: Encoder) -> None:
        self.tokenizer = encoder.tokenizer
        self.records = Records.read(source)
        encoded = [encoder.encode(row, self.records.where(number)) for number, row in enumerate(self.records.rows)]
        _say_if_merged(encoded, self.records)
        self._encoded = [each.sample for each in encoded]

    @property
    def lengths(self) -> list[int]:
        """How many tokens each example has, so that batches are of examples of similar length."""
        return _lengths(self._encoded)

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._encoded[index]


def collate(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Pad samples on the right: ``input_ids``, ``attention_mask`` (B, T) and ``labels`` (B, T or U), −100 where padded."""
    ids = [sample["input_ids"] for sample in samples]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
        "labels": pad_sequence([sample["labels"] for sample in samples], batch_first=True, padding_value=IGNORE_INDEX),
    }


class ChatData(L.LightningDataModule):
    """What a language model was fine-tuned on, and the answers to explain.

    Args:
        model: folder of the model or adapter, which answers prompts and has the tokenizer.
        data: training examples; see `trak_lightning.chat.encoding.Encoder` for their columns.
        targets: held-out answers or prompts; see `trak_lightning.chat.answers.read_answers`.
        tokenizer: folder of the tokenizer, if it is another.
        base: folder of the base model, if the adapter in `model` was trained when it was elsewhere.
        answers: file that keeps the answers of the model.
        max_length: training examples are cut off there, as in training; what the model takes if None.
        train_on: ``answers`` if only the assistant's turns were trained on, or ``all`` tokens of a conversation.
        batch_size: of both loaders.
        max_new_tokens: length of an answer that the model writes; if None, 128, or what there is room for after its prompt.
        temperature: 0 to answer with the most probable tokens.
        seed: of answers that are drawn.
        name: the split of the targets. Another file of targets has another name, and so rows and scores of its own.
    """

    def __init__(
        self,
        model: str,
        data: str,
        targets: str,
        tokenizer: str | None = None,
        base: str | None = None,
        answers: str | None = None,
        max_length: int | None = None,
        train_on: TrainOn = "answers",
        batch_size: int = 8,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        name: str = "test",
    ) -> None:
        super().__init__()
        if not re.fullmatch(r"(?!train$)[A-Za-z]\w*", name):
            raise SettingsError(f"name, of the targets, must be a word other than train, got {name!r}")
        setattr(self, f"{name}_dataloader", self._target_loader)
        self._name = name
        if max_length is not None and max_length < 2:
            raise SettingsError(f"max_length must be at least 2 tokens, got {max_length}")
        self._model, self._tokenizer, self._base = model, tokenizer, base
        self._data, self._targets = data, targets
        self._answers = None if answers is None else Path(answers)
        self._max_length, self._train_on, self._batch_size = max_length, train_on, batch_size
        self._generation = Generation(max_new_tokens, temperature, seed)

    def prepare_data(self) -> None:
        """Read the targets, before anything takes long."""
        self._say_if_plain(Records.read(self._targets))

    def setup(self, stage: str | None = None) -> None:
        """Read and encode training examples (stage ``fit``) or targets, which the model answers if it must. Targets that cannot be
        answered are refused in the first stage, where `trak check` stops."""
        if stage == "fit":
            self.train_set = ChatDataset(self._data, self.encoder)
            self._say_if_plain(self.train_set.records)
            ask(Records.read(self._targets), self.encoder, self._generation)
        else:
            generation = replace(self._generation, weights=loading.content_of(self._model, base=self._base))
            records = Records.read(self._targets)
            self.answers = read_answers(records, self.encoder, self._load_model, generation, self._answers)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the model."""
        if self._tokenizer is not None:
            return loading.load_tokenizer(self._tokenizer)
        return loading.load_tokenizer(self._model, base=self._base)

    @cached_property
    def encoder(self) -> Encoder:
        """Encodes training examples and targets."""
        config = loading.read_config(self._model, base=self._base)
        own = loading.find_tokenizer(self._model, base=self._base) if self._tokenizer is not None else None
        loading.require_fitting(self.tokenizer, config, self._model, own)
        context = loading.context_length(self.tokenizer, config)
        if self._max_length is not None and self._max_length > context:
            raise DataError(f"max_length is {self._max_length}, and {self._model} takes {context} tokens")
        return Encoder(self.tokenizer, self._max_length or context, self._train_on, config.is_encoder_decoder)

    @property
    def combination(self) -> tuple[list[str], list[int], list[float]] | None:
        """Groups and differences of answers; see `trak_lightning.chat.answers.combination`."""
        return combination(self.answers)

    @property
    def target_set(self) -> "AnswerSet":
        """The targets as a dataset."""
        return AnswerSet(self.answers, self.tokenizer)

    def explain_missing(self, split: str) -> str:
        """Say how to see targets that were asked about before others."""
        return (
            f"the targets that this run was last asked about are {self._name!r}, from {self._targets}. To see {split!r} again, repeat the command that "
            f"asked: trak sft RUN --targets FILE --name {split}. What is stored is kept and not computed again."
        )

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=self._batch_size, shuffle=True, collate_fn=collate)

    def _target_loader(self) -> DataLoader:
        return DataLoader(self.target_set, batch_size=self._batch_size, collate_fn=collate)

    def _say_if_plain(self, records: Records) -> None:
        """Warn, before anything is answered, of text that is encoded as it stands, though there is a chat template."""
        if self.encoder.encoder_decoder or (self._answers is not None and self._answers.exists()):
            return
        plain = [number for number, record in enumerate(records.rows) if is_plain(record)]
        if plain and getattr(self.tokenizer, "chat_template", None):
            log.warning(
                "chat       %d of %d examples of %s are plain text (the first is example %d) and get no chat template, though the tokenizer "
                'has one. If the model was trained with it, write [{"role": "user", "content": …}] in place of the text.',
                len(plain), len(records.rows), records.name, plain[0],
            )  # fmt: skip

    def _load_model(self) -> torch.nn.Module:
        return loading.load_model(self._model, base=self._base)


class AnswerSet(Dataset):
    """Targets as samples of a dataset; with a `tokenizer`, they are shown as text."""

    def __init__(self, answers: Sequence[Answer], tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer
        self._samples = [answer.encoded.sample for answer in answers]

    @property
    def lengths(self) -> list[int]:
        """As `ChatDataset.lengths`."""
        return _lengths(self._samples)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._samples[index]


def _say_if_merged(encoded: Sequence[Encoded], records: Records) -> None:
    """Warn of examples that do not begin with the tokens that their prompts have alone."""
    merged = [number for number, each in enumerate(encoded) if each.merged]
    if merged:
        log.warning(
            "chat       the tokens of the prompt do not begin those of the example in %d of %d examples of %s (the first is example %d), because a "
            "token holds the end of the prompt and the beginning of the answer, or the chat template renders the prompt otherwise. The answer "
            "begins where they differ, as in TRL since 1.15; before, it began after as many tokens as the prompt has alone. If a prompt ends with "
            "a space, move it to the answer, and train again.",
            len(merged), len(encoded), records.name, merged[0],
        )  # fmt: skip


def _lengths(samples: Sequence[dict[str, Tensor]]) -> list[int]:
    return [max(map(len, sample.values())) for sample in samples]
