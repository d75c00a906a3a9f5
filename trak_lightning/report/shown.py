"""What a page shows of a sample: its parts in order, and its label."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TypeAlias

from trak_lightning.report.pictures import Picture
from trak_lightning.scoring.display import LINE, SEPARATOR, after_question, ending, shortened

FEWEST = 16
"""Characters that are shown of a text, however many texts a sample has."""
PROMPT, ANSWER = "prompt", "assistant"
"""Roles of the parts of a text of which only answers were trained on."""


@dataclass(frozen=True)
class Text:
    """Plain text, with the name of its column where a sample has text in several."""

    text: str
    name: str = ""


@dataclass(frozen=True)
class Turn:
    """What one side of a conversation says."""

    role: str
    text: str


@dataclass(frozen=True)
class Table:
    """Names and values."""

    fields: tuple[tuple[str, str], ...]


Part: TypeAlias = Picture | Text | Turn | Table


@dataclass(frozen=True)
class Shown:
    """A sample as shown on a page: its parts in order, and its label."""

    parts: tuple[Part, ...]
    label: str | None = None

    @property
    def line(self) -> str:
        """Its content without the label, in one line: ``premise: … · hypothesis: …``, of about `LINE` characters if several texts are longer."""
        pictures = [_size(part) for part in self.parts if isinstance(part, Picture)]
        return SEPARATOR.join(filter(None, [*pictures, self._said(LINE)]))

    def _said(self, length: int) -> str:
        """Its text in one line: of a conversation, the last answer after its question; of several texts, as much of each."""
        turns = [part for part in self.parts if isinstance(part, Turn)]
        texts = [part for part in self.parts if isinstance(part, Text)]
        rest = length - sum(len(f"{part.name}: {SEPARATOR}") for part in texts)
        longest = _fair(rest, [len(part.text) for part in texts]) if len(texts) > 1 else None
        own = [(part.name, part.text if longest is None else shortened(part.text, longest)) for part in texts]
        fields = [field for part in self.parts if isinstance(part, Table) for field in part.fields]
        named = [f"{name}: {text}" if name else text for name, text in [*own, *fields] if text]
        return SEPARATOR.join(filter(None, [_last_answer(turns), *named]))

    @property
    def rows(self) -> list[list[Part]]:
        """Its parts, of which pictures that follow each other are to be compared, and shown side by side."""
        groups = groupby(self.parts, key=lambda part: isinstance(part, Picture))
        return [row for alike, found in groups for row in ([list(found)] if alike else [[part] for part in found])]

    @property
    def image(self) -> bytes | None:
        """The file of its first image."""
        found = next((part.source for part in self.parts if isinstance(part, Picture)), None)
        return None if found is None else base64.b64decode(found.partition(",")[2])

    @property
    def html(self) -> str:
        """Its content as HTML, for notebooks."""
        style = "height:64px;image-rendering:pixelated"
        pictures = [
            f'<img src="{part.source}" style="{style}" alt="">' for part in self.parts if isinstance(part, Picture)
        ]
        text = shortened(self._said(2 * LINE), 2 * LINE)
        return "".join([*pictures, f"<div>{escape(text)}</div>" if text else ""])

    @property
    def is_wordy(self) -> bool:
        """Whether it has parts that take space to read."""
        return not all(isinstance(part, Picture) for part in self.parts)

    @property
    def words(self) -> str:
        """All its text, for search and screen readers."""
        found = [] if self.label is None else [self.label]
        for part in self.parts:
            if isinstance(part, (Text, Turn)):
                found.append(part.text)
            elif isinstance(part, Table):
                found += [f"{name} {value}" for name, value in part.fields]
        return " ".join(found)


def _fair(total: int, lengths: Sequence[int]) -> int:
    """The length to cut texts to, so that they have `total` characters together: what short ones leave is for longer ones.

    >>> _fair(100, [10, 400, 70])
    45
    """
    left, share = sorted(lengths), total
    while left and left[0] <= (share := max(total // len(left), FEWEST)):
        total -= left.pop(0)
    return share


def _size(picture: Picture) -> str:
    order = " (w×h)" * (picture.width != picture.height)
    return f"{picture.name} {picture.width}×{picture.height}{order}"


def _last_answer(turns: Sequence[Turn]) -> str:
    """The last answer after the question that it answers; all answers to that question, such as a chosen and a rejected one. Without an answer at
    the end, all that is said but by the system, which often says the same in all conversations, and much."""
    if not turns or turns[-1].role not in (ANSWER, "model"):
        return " → ".join(turn.text for turn in [each for each in turns if each.role != "system"] or turns)
    question, answered = "", []
    for turn in turns:
        if turn.role in ("user", PROMPT):
            question = ending(turn.text, LINE // 2) if turn.role == PROMPT else turn.text
        elif turn.role in (ANSWER, "model"):
            answered.append((question, turn.text))
    return after_question(question, " | ".join(answer for asked, answer in answered if asked == question))
