"""Tokens as text, marked by how much they moved a score. T: tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trak_lightning.scoring.base import Array
from trak_lightning.scoring.token_scores import TokenScores

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class MarkedToken:
    """A token, and its share of a score."""

    text: str
    value: float
    strength: float
    """−1 … 1: the value divided by the largest of its text."""


@dataclass(frozen=True)
class TokenMarks:
    """Which tokens of a training example moved which tokens of a target; both sum to the score of the pair."""

    example: tuple[MarkedToken, ...]
    target: tuple[MarkedToken, ...]

    @classmethod
    def of(cls, found: TokenScores, example: Sequence[str], target: Sequence[str]) -> "TokenMarks":
        """Mark the texts of the example's and the target's tokens."""
        return cls(_marked(example, found.values.sum(0)), _marked(target, found.values.sum(1)))


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the text of each token, (T,); joined, they are the decoded text.

    A character of several tokens is given to the last of them.
    """
    texts: list[str] = []
    done = ""
    for end in range(1, len(ids) + 1):
        whole = str(tokenizer.decode(list(ids[:end]))).rstrip(_INCOMPLETE)
        if not whole.startswith(done):  # a tokenizer that cleans up spaces changes what it has already written
            return [str(tokenizer.decode([number])) for number in ids]
        texts.append(whole[len(done) :])
        done = whole
    return texts


def _marked(texts: Sequence[str], values: Array) -> tuple[MarkedToken, ...]:
    largest = max(float(np.abs(values).max(initial=0.0)), np.finfo(np.float64).tiny)
    return tuple(
        MarkedToken(text, float(value), float(value) / largest) for text, value in zip(texts, values, strict=True)
    )
