"""Compare the settings that stored data was made with to the settings that are requested now."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trak_lightning.errors import IncompatibleRunError
from trak_lightning.registry import current_path


def current(recorded: Any) -> Any:
    """Return JSON values as this version would write them: class paths of earlier versions are replaced by today's."""
    if isinstance(recorded, Mapping):
        return {key: current(value) for key, value in recorded.items()}
    if isinstance(recorded, list | tuple):
        return [current(value) for value in recorded]
    return current_path(recorded) if isinstance(recorded, str) else recorded


def first_difference(recorded: Any, asked: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Return the dotted name of the first setting that differs, with both values; None if all agree."""
    if isinstance(recorded, Mapping) and isinstance(asked, Mapping):
        for key in [*recorded, *(key for key in asked if key not in recorded)]:
            child = f"{name}.{key}" if name else str(key)
            if (found := first_difference(recorded.get(key), asked.get(key), child)) is not None:
                return found
        return None
    return None if recorded == asked else (name, recorded, asked)


ALL_ROWS = "delete the folders features and projections of this run directory, and references if it is there, so that all rows are computed again"
"""How to start over with other settings of features."""


def require_same(
    recorded: Mapping[str, Any], asked: Mapping[str, Any], where: Path | str, *, start_over: str = ALL_ROWS
) -> None:
    """Refuse to resume `where` if it was made with other settings; classes that were only moved count as the same.

    `start_over` says what to delete, so that everything is made again; nothing of a run directory can be kept if it is empty.

    Raises:
        IncompatibleRunError: names the first setting that differs, and both values.
    """
    difference = first_difference(current(recorded), current(asked))
    if difference is not None:
        name, old, new = difference
        layouts = [each.get("parameters") for each in (recorded, asked)]
        why = " The model has other parameters, or others of them are attributed." * (layouts[0] != layouts[1])
        raise IncompatibleRunError(
            f"{where} was made with {name} = {old!r}, and {new!r} is asked for now.{why} Use another run directory, "
            + (f"go back to the old setting, or {start_over}." if start_over else "or go back to the old setting.")
        )
