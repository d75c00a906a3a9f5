"""What a page shows of a sample: its parts in order, and its label."""

import base64
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

from trak_lightning.report.pictures import Picture


@dataclass(frozen=True)
class Text:
    """Plain text."""

    text: str


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
        """Its content without the label, in one line."""
        pictures = [f"{part.name} {part.width}×{part.height}" for part in self.parts if isinstance(part, Picture)]
        turns = [part for part in self.parts if isinstance(part, Turn)]
        # What the system says is often the same in all conversations, and long.
        said = " → ".join(turn.text for turn in [each for each in turns if each.role != "system"] or turns)
        others = Shown(tuple(part for part in self.parts if not isinstance(part, Turn))).words
        return " ".join(filter(None, [*pictures, said, others]))

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
        text = Shown(self.parts).words
        return "".join([*pictures, f"<div>{escape(text[:200])}</div>" if text else ""])

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
