"""Figures of evaluations as plain data that JSON can hold. No torch; matplotlib only to draw."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from trak_lightning.evaluation.drawing import INK, SERIES, axes

FEW = 30
"""Up to so many points of a line get a marker each."""


@dataclass(frozen=True)
class Series:
    """One line of a figure, with the ends of its intervals where they are known."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Curves:
    """Lines, with bands for their intervals."""

    series: tuple[Series, ...]
    x_label: str
    y_label: str
    x_log: bool = False

    @contextmanager
    def drawn(self, name: str) -> Iterator[Any]:
        """Yield the figure; `name` makes it reproducible bit for bit."""
        with axes(name) as (figure, axis):
            for series in self.series:
                marker = "o" if len(series.x) <= FEW else ""
                (line,) = axis.plot(series.x, series.y, marker=marker, markersize=4, label=series.name)
                if series.low:
                    axis.fill_between(
                        series.x, series.low, series.high, color=line.get_color(), alpha=0.15, linewidth=0
                    )
            if self.x_log:
                axis.set_xscale("log")
            axis.set_xlabel(self.x_label)
            axis.set_ylabel(self.y_label)
            lines = sorted(
                axis.get_lines(), key=lambda line: (-line.get_ydata()[-1], -sum(line.get_ydata()))
            )  # the order of the lines at their ends
            axis.legend(lines, [line.get_label() for line in lines])
            yield figure


@dataclass(frozen=True)
class Bar:
    """A value with the ends of its interval."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Intervals:
    """Values with their intervals, one below the other; the first stands out."""

    bars: tuple[Bar, ...]
    x_label: str

    @contextmanager
    def drawn(self, name: str) -> Iterator[Any]:
        """Yield the figure; `name` makes it reproducible bit for bit."""
        with axes(name, height=0.9 + 0.42 * len(self.bars)) as (figure, axis):
            for place, bar in enumerate(self.bars):
                color = SERIES[0] if place == 0 else SERIES[5]
                axis.plot([bar.low, bar.high], [place, place], color=color, linewidth=3, solid_capstyle="round")
                axis.plot([bar.value], [place], "o", color=color, markersize=8)
            axis.set_yticks(range(len(self.bars)), [bar.name for bar in self.bars])
            axis.set_ylim(len(self.bars) - 0.5, -0.5)
            axis.grid(axis="y", visible=False)
            axis.axvline(0, color=INK, linewidth=1)
            axis.set_xlabel(self.x_label)
            yield figure


Figure: TypeAlias = Curves | Intervals


def to_json(figure: Figure | None) -> dict[str, Any] | None:
    """A figure as JSON."""
    return None if figure is None else {"kind": type(figure).__name__.lower(), **asdict(figure)}


def from_json(found: dict[str, Any] | None) -> Figure | None:
    """Inverse of `to_json`.

    Raises:
        KeyError, TypeError: it is something else.
    """
    if found is None:
        return None
    if found["kind"] == "intervals":
        return Intervals(tuple(Bar(**bar) for bar in found["bars"]), found["x_label"])
    series = tuple(
        Series(each["name"], *(tuple(each[ends]) for ends in ("x", "y", "low", "high"))) for each in found["series"]
    )
    return Curves(series, found["x_label"], found["y_label"], found["x_log"])
