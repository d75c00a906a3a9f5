"""Draw in one style, as SVG whose colors and font follow the page around it, and as files for papers."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trak_lightning.errors import needed_for
from trak_lightning.run.atomic import atomic_write

INK, PALE = "#010203", "#040506"
"""Text and grid: stand-ins that `inline_svg` replaces with the colors of the page."""

SERIES = ("#2364aa", "#d1495b", "#4f8a3c", "#8d5aa5", "#b7791f", "#5f6b76")
"""Colors that people with red–green color blindness can tell apart; the page has lighter ones for dark mode."""

GRID = "#dcdfe2"
"""Color of the grid in files."""

_IN_PAGE = {INK: "currentColor", PALE: "var(--rule)"} | {
    color: f"var(--series-{i}, {color})" for i, color in enumerate(SERIES)
}


def available() -> bool:
    """Whether matplotlib, which draws, is installed."""
    return find_spec("matplotlib") is not None


@contextmanager
def axes(name: str, *, width: float = 5.4, height: float = 3.2) -> Iterator[tuple[Any, Any]]:
    """Yield a figure and its axes in our style.

    Raises:
        DataError: matplotlib is not installed.
    """
    with needed_for("a figure", "'trak-lightning[report]'"):
        from cycler import cycler
        from matplotlib import rc_context
        from matplotlib.figure import Figure
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
    """Return the figure as an ``<svg>`` element whose colors follow the page; `title` is its label for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    svg = re.sub(r' (?:width|height)="[^"]*"', "", head) + ">" + rest  # fills its column
    for color, variable in _IN_PAGE.items():
        svg = svg.replace(color, variable)
    # Ids must be unique in the page, not only in the figure.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title, quote=True)}"', 1)


def save(figure: Any, path: Path) -> None:
    """Write the figure to `path` with the suffixes .svg and .png, for papers and slides."""
    for axis in figure.axes:  # a page sets the color of the grid; a file cannot
        for line in (*axis.get_xgridlines(), *axis.get_ygridlines()):
            line.set_color(GRID)
    for suffix, options in ((".svg", {}), (".png", {"dpi": 160, "facecolor": "white"})):
        with atomic_write(path.with_suffix(suffix)) as part:
            figure.savefig(part, format=suffix[1:], **options)
