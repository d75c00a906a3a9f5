"""Figures as SVG that takes its colours and its font from the page around it."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from trak_lightning.evaluation.result import Result

INK, PALE = "#010203", "#040506"
SERIES = ("#2364aa", "#d1495b", "#4f8a3c", "#8d5aa5", "#b7791f", "#5f6b76")
"""Told apart by people who see no red or no green; the page has lighter ones for dark mode."""

GRID = "#dcdfe2"
"""Of files."""

FEW = 30
"""Points of a line that are marked one by one."""

_IN_PAGE = {INK: "currentColor", PALE: "var(--rule)"} | {
    color: f"var(--series-{i}, {color})" for i, color in enumerate(SERIES)
}


def available() -> bool:
    """Whether there is a library to draw with."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


@contextmanager
def axes(name: str, *, width: float = 5.4, height: float = 3.2) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes in the house's style."""
    try:
        from cycler import cycler
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        from trak_lightning.errors import DataError

        raise DataError(f"figures need matplotlib ({error}): pip install 'trak-lightning[report]'") from error

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": PALE,
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=SERIES),
        "legend.frameon": False,
        "axes.unicode_minus": True,
    }
    with rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        axis = figure.add_subplot()
        axis.patch.set_alpha(0)
        yield figure, axis


def inline_svg(name: str, figure: Any, title: str) -> str:
    """The figure as an ``<svg>`` element for a page: its colours follow the page's, its title is read aloud."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    svg = re.sub(r' (?:width|height)="[^"]*"', "", head) + ">" + rest  # as wide as its column
    for color, variable in _IN_PAGE.items():
        svg = svg.replace(color, variable)
    # Ids are unique in a page, not only in a figure.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{_escape(title)}"', 1)


def save(figure: Any, path: Path) -> None:
    """``path`` with the suffixes .svg and .png, for papers and slides."""
    from trak_lightning.run.atomic import atomic_write

    for axis in figure.axes:  # in a page, the colour of the grid is the page's
        for line in (*axis.get_xgridlines(), *axis.get_ygridlines()):
            line.set_color(GRID)
    for suffix, options in ((".svg", {}), (".png", {"dpi": 160, "facecolor": "white"})):
        with atomic_write(path.with_suffix(suffix)) as part:
            figure.savefig(part, format=suffix[1:], **options)


@contextmanager
def intervals(name: str, rows: Sequence[tuple[str, float, float, float]], x_label: str) -> Iterator[Any]:
    """Values with their intervals, one below the other: (name, value, low, high)."""
    with axes(name, height=0.9 + 0.42 * len(rows)) as (figure, axis):
        for place, (_, value, low, high) in enumerate(rows):
            color = SERIES[0] if place == 0 else SERIES[5]
            axis.plot([low, high], [place, place], color=color, linewidth=3, solid_capstyle="round")
            axis.plot([value], [place], "o", color=color, markersize=8)
        axis.set_yticks(range(len(rows)), [row[0] for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(axis="y", visible=False)
        axis.axvline(0, color=INK, linewidth=1)
        axis.set_xlabel(x_label)
        yield figure


@contextmanager
def lines(name: str, result: "Result") -> Iterator[Any]:
    """The series of an evaluation, with bands for their intervals."""
    with axes(name) as (figure, axis):
        for series in result.series:
            marker = "o" if len(series.x) <= FEW else ""
            (line,) = axis.plot(series.x, series.y, marker=marker, markersize=4, label=series.name)
            if series.low:
                axis.fill_between(series.x, series.low, series.high, color=line.get_color(), alpha=0.15, linewidth=0)
        if result.x_log:
            axis.set_xscale("log")
        axis.set_xlabel(result.x_label)
        axis.set_ylabel(result.y_label)
        axis.legend()
        yield figure


def calibration_curve(relative: Sequence[float], curves: dict[str, Sequence[float]], chosen: float | None) -> str:
    """The linear datamodeling score at every λ/trace that was tried."""
    with axes("calibration") as (figure, axis):
        for name, values in curves.items():
            axis.plot(relative, values, "o-", label=f"weights: {name}")
        if chosen is not None:
            axis.axvline(chosen, color=SERIES[1], linestyle="--", label=f"chosen: trace/{1 / chosen:.0f}")
        axis.set_xscale("log")
        axis.set_xlabel("λ / trace(ΦᵀWΦ)")
        axis.set_ylabel("correlation")
        axis.legend()
        return inline_svg("calibration", figure, "Correlation of predicted and observed outputs, by λ")


def spectrum(values: Any, regularization: float) -> str:
    """Eigenvalues of the Gram matrix, in descending order, and λ."""
    ordered = np.sort(np.asarray(values))[::-1]
    ordered = ordered[ordered > 0]
    # A few hundred points of a line are as good as thousands.
    places = np.unique(np.geomspace(1, len(ordered), 400).astype(int)) - 1
    with axes("spectrum") as (figure, axis):
        axis.plot(places + 1, ordered[places], label="eigenvalues of ΦᵀWΦ")
        if regularization > 0:
            axis.axhline(regularization, color=SERIES[1], linestyle="--", label=f"λ = {regularization:.3g}")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_ylim(bottom=max(ordered[0] * 1e-10, ordered[-1]) / 2)
        axis.set_xlabel("rank")
        axis.legend()
        return inline_svg("spectrum", figure, "Eigenvalues of the Gram matrix in descending order")


def _escape(text: str) -> str:
    from html import escape

    return escape(text, quote=True)
