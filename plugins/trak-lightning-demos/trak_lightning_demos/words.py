"""Words as numbers, for the small language models that are trained from scratch."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

PAD, BEGIN, END, UNKNOWN = range(4)
"""The first four numbers; words follow."""


class Vocabulary:
    """The most frequent words of some texts, lower case, and punctuation marks.

    Args:
        texts: where the words are from.
        size: of the vocabulary, the four special numbers included; all words if None.
    """

    def __init__(self, texts: Iterable[str], size: int | None = None) -> None:
        counts = Counter(word for text in texts for word in words(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        self.words = ["<pad>", "<s>", "</s>", "<unk>", *ranked[: None if size is None else size - 4]]
        self._numbers = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """The numbers of the words, without begin and end."""
        return [self._numbers.get(word, UNKNOWN) for word in words(text)]

    def decode(self, numbers: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The words, up to the end; special numbers are always left out. This is the interface of tokenizers of transformers,
        through which the report shows samples."""
        found = []
        for number in numbers:
            if number == END:
                break
            if number not in (PAD, BEGIN):
                found.append(self.words[number])
        return " ".join(found)


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def padded(rows: Sequence[Sequence[int]], value: int = PAD) -> Tensor:
    """(B, T), filled up on the right."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def labelled(samples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
    """Samples with `input_ids` and `labels` as a batch; `labels` are −100 where one has ended."""
    ids = padded([sample["input_ids"] for sample in samples])
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "labels": padded([sample["labels"] for sample in samples], -100),
    }
