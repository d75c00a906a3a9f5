"""What an evaluation found: a table, perhaps a figure, and the request that it answers. JSON. No torch."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trak_lightning.errors import CorruptFileError
from trak_lightning.run.atomic import atomic_write
from trak_lightning.run.directory import read_json


@dataclass(frozen=True)
class Series:
    """One line of a figure, with the ends of its intervals where they are known."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Result:
    """``evaluation/<kind>-<targets>.json``."""

    kind: str
    title: str
    text: str
    """What was done, and how to read it."""
    headline: str
    request: dict[str, Any]
    """All that determines the result."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """As they are printed."""
    values: dict[str, Any]
    """The numbers behind them, at full precision."""
    series: tuple[Series, ...] = ()
    x_label: str = ""
    y_label: str = ""
    x_log: bool = False

    def print(self) -> None:
        """A table on standard output."""
        from rich.console import Console
        from rich.table import Table

        table = Table(title=self.title, title_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        Console().print(table)

    def write(self, path: Path) -> None:
        """As JSON, and the figure beside it as SVG and PNG if there is one and matplotlib to draw it."""
        from trak_lightning.evaluation import figures

        with atomic_write(path) as part:
            part.write_text(json.dumps(asdict(self), indent=1))
        if self.series and figures.available():
            with figures.lines(path.stem, self) as figure:
                figures.save(figure, path)


def read_result(path: Path) -> Result:
    """What `Result.write` wrote.

    Raises:
        CorruptFileError: it is something else.
    """
    found = read_json(path)
    try:
        series = tuple(
            Series(each["name"], *(tuple(float(value) for value in each[name]) for name in ("x", "y", "low", "high")))
            for each in found["series"]
        )
        rows = tuple(tuple(row) for row in found["rows"])
        return Result(**{**found, "series": series, "rows": rows, "columns": tuple(found["columns"])})
    except (KeyError, TypeError) as error:
        raise CorruptFileError(
            f"{path} is not the result of an evaluation ({error}). Delete it and evaluate again."
        ) from error
