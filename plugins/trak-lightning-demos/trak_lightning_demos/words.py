"""A word-level tokenizer for the small language models that are trained from scratch."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

PAD, BEGIN, END, UNKNOWN = range(4)
"""The first four token ids; words follow."""


class Vocabulary:
    """The most frequent words and punctuation marks of some texts, in lower case.

    Args:
        texts: texts to collect words from.
        size: size of the vocabulary, including the four special tokens; all words if None.
    """

    def __init__(self, texts: Iterable[str], size: int | None = None) -> None:
        counts = Counter(word for text in texts for word in words(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        self.words = ["<pad>", "<s>", "</s>", "<unk>", *ranked[: None if size is None else size - 4]]
        self._numbers = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of the words, without begin and end tokens."""
        return [self._numbers.get(word, UNKNOWN) for word in words(text)]

    def decode(self, numbers: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the words of token ids, up to the end token; special tokens are always left out. This is the interface of
        tokenizers of transformers, through which the report shows samples."""
        found = []
        for number in numbers:
            if number == END:
                break
            if number not in (PAD, BEGIN):
                found.append(self.words[number])
        return " ".join(found)


def words(text: str) -> list[str]:
    """Split a text into words and punctuation marks."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def padded(rows: Sequence[Sequence[int]], value: int = PAD) -> Tensor:
    """Pad sequences on the right: (B, T)."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def labelled(samples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
    """Collate samples with `input_ids` and `labels` to a batch; `labels` are padded with −100."""
    ids = padded([sample["input_ids"] for sample in samples])
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "labels": padded([sample["labels"] for sample in samples], -100),
    }
