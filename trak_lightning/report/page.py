"""Render the page: one file that opens from disk and loads nothing."""

import base64
import hashlib
from collections.abc import Iterable
from importlib.resources import files

from trak_lightning import __version__
from trak_lightning.errors import needed_for
from trak_lightning.report.contents import Report
from trak_lightning.report.pictures import Picture
from trak_lightning.report.shown import Shown
from trak_lightning.run.formatting import format_number


def page(report: Report) -> str:
    """Render HTML. Everything from data is escaped, and a content security policy lets only our own script run.

    Raises:
        DataError: jinja2 is not installed.
    """
    with needed_for("a report", "'trak-lightning[report]'"):
        from jinja2 import Environment, PackageLoader, StrictUndefined
    environment = Environment(
        loader=PackageLoader("trak_lightning.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = _signed
    environment.filters["spread"] = lambda value: format_number(value, 1)
    environment.filters["legend"] = _legend
    environment.filters["unbroken"] = lambda text: text.replace(" %", "\u00a0%")
    templates = files("trak_lightning.report") / "templates"
    script = (templates / "page.js").read_text()
    return environment.get_template("page.html").render(
        report=report,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=(templates / "page.css").read_text(),
        version=__version__,
    )


def _legend(shown: Iterable[Shown]) -> list[tuple[str, str]]:
    """The color and the name of each class in the masks of some samples."""
    pictures = [part for each in shown for part in each.parts if isinstance(part, Picture)]
    return [(color, name) for _, color, name in sorted({entry for part in pictures for entry in part.legend})]


def _signed(value: float) -> str:
    """Two digits."""
    return format_number(value, 2, "+#").rstrip(".").replace("-", "−")
