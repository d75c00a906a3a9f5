"""The fenced code blocks of a Markdown page."""

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r'^```(\w+)(?: title="(\S+)")?(?: needs="(\S+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block in some language; ``file`` is the path that is its title, or empty, and ``needs`` a package without
    which it is not run."""

    language: str
    file: str
    code: str
    line: int
    needs: str = ""


def blocks(page: Path) -> list[Block]:
    """All blocks that name a language, in order."""
    text = page.read_text()
    return [
        Block(found[1], found[2] or "", found[4], text.count("\n", 0, found.start()) + 1, found[3] or "")
        for found in _FENCE.finditer(text)
    ]
