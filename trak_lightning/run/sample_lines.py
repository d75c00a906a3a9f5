"""Label and one line of text of samples, and the targets that models get wrong, kept in the run directory, so that commands show them without
running the user's code.

They are found by the content hash that is stored with a sample's row, so that a line is that of the sample that was attributed, whatever
has become of the data. No torch.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trak_lightning.errors import StorageError
from trak_lightning.run.atomic import atomic_write
from trak_lightning.run.content_hashes import UNKNOWN
from trak_lightning.run.directory import RunDirectory

FILES = 8
"""Of how many score files, the last ones, the mistakes are kept."""


@dataclass(frozen=True)
class SampleLine:
    """A sample in a table of a terminal."""

    label: str | None
    line: str


class SampleLines:
    """``sample_lines.json`` of a run directory.

    Lines made by other code are not found: class names or the way to show a sample may have changed with the DataModule, with the
    configuration, or with this library. A file that cannot be read counts as empty.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._path = run.path / "sample_lines.json"
        self._lines: dict[str, SampleLine] = {}
        self._mistakes: dict[str, dict[str, Any]] = {}
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            kept = json.loads(self._path.read_text())
            if kept["made_by"] == self._made_by(kept["made_by"]["files"]):
                self._lines = {key: SampleLine(*line) for key, line in kept["lines"].items()}
                self._mistakes = kept["mistakes"]

    def find(self, content: Mapping[int, int]) -> dict[int, SampleLine] | None:
        """Return the line of each position, given its content hash; None if one is not known."""
        found = {position: self._lines.get(str(hashed)) for position, hashed in content.items() if hashed != UNKNOWN}
        lines = {position: line for position, line in found.items() if line is not None}
        return lines if len(lines) == len(content) else None

    def add(self, lines: Mapping[int, SampleLine]) -> None:
        """Keep lines, by content hash, beside those that are known. In a run directory that cannot be written, nothing is kept."""
        known = self._lines | {str(hashed): line for hashed, line in lines.items() if hashed != UNKNOWN}
        if known == self._lines:
            return
        self._lines = known
        self._write()

    def mistakes(self, scores: str) -> dict[str, Any] | None:
        """Return the mistakes among the targets of the score file with this checksum, as they were kept; None if they are not known."""
        return self._mistakes.get(scores)

    def keep_mistakes(self, scores: str, found: Mapping[str, Any]) -> None:
        """Keep the mistakes among the targets of the score file with this checksum, as JSON values."""
        if scores:
            last = [*self._mistakes.items()][1 - FILES :]
            self._mistakes = dict(last) | {scores: dict(found)}
            self._write()

    def _write(self) -> None:
        content = {
            "made_by": self._made_by(_own_code()),
            "lines": {key: [each.label, each.line] for key, each in self._lines.items()},
            "mistakes": self._mistakes,
        }
        with suppress(StorageError), atomic_write(self._path) as part:
            part.write_text(json.dumps(content))

    def _made_by(self, files: Iterable[str]) -> dict[str, Any]:
        """What lines depend on beside the sample: these files of code, the configuration, and this library."""
        return {
            "files": {file: Path(file).stat().st_mtime_ns for file in files},
            "config": self._run.config.read_text(),
            "version": version("trak-lightning"),
        }


def _own_code() -> list[str]:
    """The files of all imported modules that are not installed, which are the user's."""
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return sorted(file for file in files if file and not _is_installed(Path(file).parent) and Path(file).is_file())


@cache  # thousands of modules are in a few hundred folders
def _is_installed(folder: Path) -> bool:
    below = any(folder.is_relative_to(prefix) for prefix in (sys.prefix, sys.base_prefix))
    return below or not {"site-packages", "dist-packages"}.isdisjoint(folder.parts)
