"""Result of an evaluation: a table, perhaps a figure, and the request that it answers. JSON. No torch."""

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trak_lightning.errors import CorruptFileError, IncompatibleRunError
from trak_lightning.evaluation import drawing
from trak_lightning.evaluation.figures import Figure, from_json, to_json
from trak_lightning.run.atomic import atomic_write
from trak_lightning.run.directory import RunDirectory, read_json
from trak_lightning.run.same_settings import current
from trak_lightning.scoring.display import print_table
from trak_lightning.scoring.scores import Scores

FORMAT = 2
"""Version of the JSON. Files without one are from before all evaluations had this form."""


@dataclass(frozen=True)
class Result:
    """``evaluation/<kind>-<targets>.json``: the one class of every evaluation."""

    kind: str
    title: str
    text: str
    """What was done, and how to read it."""
    headline: str
    """The result in one line."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The table as printed."""
    values: dict[str, Any]
    """The numbers of the table at full precision."""
    figure: Figure | None = None
    request: dict[str, Any] = field(default_factory=dict)
    """Everything that determines the result."""

    def print(self) -> None:
        """Print the table on standard output."""
        print_table(self.columns, self.rows, numeric=range(1, len(self.columns)), title=self.title)

    def svg(self, name: str) -> str:
        """The figure as an ``<svg>`` element for a page, its ids prefixed with `name`; empty if there is none.

        Raises:
            DataError: matplotlib is not installed.
        """
        if self.figure is None:
            return ""
        with self.figure.drawn(name) as drawn:
            return drawing.inline_svg(name, drawn, self.title)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON, which `read_result` reads."""
        return {"format": FORMAT, **asdict(self), "figure": to_json(self.figure)}

    def write(self, path: Path) -> None:
        """Write JSON, and the figure as SVG and PNG next to it if there is one and matplotlib to draw it."""
        with atomic_write(path) as part:
            part.write_text(json.dumps(self.to_json(), indent=1))
        if self.figure is not None and drawing.available():
            with self.figure.drawn(path.stem) as drawn:
                drawing.save(drawn, path)


def measured_lds(run: RunDirectory, scores: Scores) -> Result | None:
    """Return the linear datamodeling score that an evaluation measured of exactly these scores, or None.

    Raises:
        CorruptFileError: a stored result is damaged.
    """
    request = scores.settings.get("request", {})
    one_training = "repeated_by" in scores.settings  # see `RecordedRun`
    made_from = current(
        {"scores": request} if one_training else {key: value for key, value in request.items() if key != "top"}
    )
    for path in sorted(run.evaluation.glob("fixed-seed-*.json" if one_training else "lds-*.json")):
        with suppress(IncompatibleRunError):
            result = read_result(path)
            asked = current(result.request)
            if made_from and all(asked.get(key) == value for key, value in made_from.items()):
                return result
    return None


def lds_of(result: Result) -> tuple[float, float, float]:
    """The linear datamodeling score of the evaluated scores, and its 95 % interval over targets and models; NaN for what is not known."""
    values = next(iter(result.values["scores"].values()))
    lds, low, high = (math.nan if values[key] is None else values[key] for key in ("lds", "low_models", "high_models"))
    return lds, low, high


def read_result(path: Path) -> Result:
    """Read what `Result.write` wrote.

    Raises:
        IncompatibleRunError: an earlier version of trak_lightning wrote it.
        CorruptFileError: it is something else.
    """
    found = read_json(path)
    if isinstance(found, dict) and "request" in found and found.get("format") != FORMAT:
        raise IncompatibleRunError(
            f"{path} was written by another version of trak_lightning. Run trak evaluate again to renew it; models that "
            "are stored are not retrained."
        )
    try:
        fields = {name: value for name, value in found.items() if name != "format"}
        rows = tuple(tuple(row) for row in fields["rows"])
        figure = from_json(fields["figure"])
        return Result(**{**fields, "columns": tuple(fields["columns"]), "rows": rows, "figure": figure})
    except (AttributeError, KeyError, TypeError) as error:
        raise CorruptFileError(
            f"{path} is not the result of an evaluation ({type(error).__name__}: {error}). Delete it and run trak "
            "evaluate again."
        ) from error
