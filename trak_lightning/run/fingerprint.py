"""Compare the settings that stored results were made with to those asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trak_lightning.errors import IncompatibleRunError


def first_difference(recorded: Any, asked: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The dotted name of the first setting that differs, with both values; None if all agree."""
    if isinstance(recorded, Mapping) and isinstance(asked, Mapping):
        for key in [*recorded, *(key for key in asked if key not in recorded)]:
            child = f"{name}.{key}" if name else str(key)
            if (found := first_difference(recorded.get(key), asked.get(key), child)) is not None:
                return found
        return None
    return None if recorded == asked else (name, recorded, asked)


def require_same(recorded: Mapping[str, Any], asked: Mapping[str, Any], where: Path | str) -> None:
    """Refuse to use `where` if it was made with other settings.

    Raises:
        IncompatibleRunError: names the first setting that differs, and both values.
    """
    difference = first_difference(recorded, asked)
    if difference is not None:
        name, old, new = difference
        raise IncompatibleRunError(
            f"{where} was made with {name} = {old!r}, and {new!r} is asked for now. Use another run directory, go back to "
            "the old setting, or delete that folder."
        )
