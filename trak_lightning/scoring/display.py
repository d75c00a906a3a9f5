"""Rankings for people: as a table of a terminal, as HTML of a notebook, as a figure. No torch."""

import io
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from html import escape
from itertools import zip_longest
from typing import Any, Protocol

from trak_lightning.errors import needed_for
from trak_lightning.scoring.ranking import Ranking

LINE = 100
"""Characters of a sample's text in a table."""
SEPARATOR = " · "
"""Between the columns of a sample in one line."""
TOKEN_IDS = "token ids"
"""Name of token ids that nothing decodes."""
TOKENIZER = "an attribute tokenizer of the DataModule, the dataset or the collate_fn"
"""What turns token ids into text."""
UNREAD = f"{TOKENIZER} shows token ids as text"
PICTURES = "a report shows pictures"
PICTURES_IN_PYTHON = "scores.plot() and a report show pictures"
FEATURE_NAMES = "feature_names of the DataModule or the dataset names the entries of a vector"
FEATURE_NAMES_IN_PYTHON = "feature_names of the dataset names the entries of a vector"
RENDER = "render(sample) of the DataModule says what is shown"
RENDER_IN_PYTHON = "render(sample) of the DataModule, or render= of TRAK.score, says what is shown"
CLASS_NAMES = "class_names of the DataModule, or classes of the dataset, names labels"
"""What makes rows readable."""
_UNNAMED = re.compile(r"\bx\d*\[\d+\]: ")
_NUMBERED = re.compile(r"\d+(, \d+)+")
_SIZES = re.compile(r"\S+ (of shape \([\d, ]*\)|\d+×\d+( \(w×h\))?)|\d+ (nodes|edges)")
NONE = ("none", "")
"""In place of index and score where no score has the sign."""


class ShownLine(Protocol):
    """What a table of a terminal shows of a sample."""

    @property
    def label(self) -> str | None: ...

    @property
    def line(self) -> str:
        """Its content in one line."""


class ShowsLines(Protocol):
    """Shows the samples of a dataset in tables."""

    def show(self, index: int) -> ShownLine: ...


class ShownSample(ShownLine, Protocol):
    """What is shown of a sample, such as `trak_lightning.report.Shown`."""

    @property
    def html(self) -> str: ...

    @property
    def image(self) -> bytes | None:
        """The file of its first image."""


class ShowsSamples(Protocol):
    """Shows the samples of a dataset, such as `trak_lightning.report.Samples`."""

    def show(self, index: int) -> ShownSample: ...

    def label(self, index: int) -> str | None: ...


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Collection[int] = (), title: str = ""
) -> None:
    """Print a table, with a frame if it has a title. In the columns at the places in `numeric`, cells are aligned right and not broken."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left") if title else Table(box=None)
    cells = [list(row) for row in rows]
    for place, heading in enumerate(headings):
        width = max((len(row[place]) for row in cells), default=0) if place in numeric else None
        table.add_column(Text(heading), justify="left" if width is None else "right", min_width=width, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))  # not as markup: a class may be called [b]
    console = Console()
    with console.capture() as printed:
        console.print(table)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))


def ranking_table(
    title: str,
    what: str,
    headings: Sequence[str],
    rankings: Sequence[Ranking],
    samples: ShowsLines | None = None,
    *,
    render: str = RENDER,
) -> Any:
    """Make a table (of rich) of rankings, (k,) each, of ``train`` or ``target`` samples (`what`), each under its heading; with
    label and text where `samples` show them. `render`: as for `to_read`."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if samples is None:
        table = Table(title=Text(title), title_justify="left")
        for heading in ("rank", *(each for name in headings for each in (f"{name}: {what} index", "score"))):
            table.add_column(heading, justify="right", no_wrap=heading == "score")
        sides = [list(ranking.written()) or [NONE] for ranking in rankings]
        for place, row in enumerate(zip_longest(*sides, fillvalue=("", ""))):
            table.add_row(str(place + 1), *(each for side in row for each in side))
        return table
    names: tuple[str, ...] = (f"{what} index", "score", "label", "sample")
    shown = [list(_shown_rows(ranking, samples)) or [(*NONE, "", "")] for ranking in rankings]
    if not any(row[2] for rows in shown for row in rows):  # no sample has a label
        names, shown = names[:2] + names[3:], [[row[:2] + row[3:] for row in rows] for rows in shown]
    if are_picture_sizes([row[-1] for rows in shown for row in rows if row[0] != NONE[0]]):
        names, shown = names[:-1], [[row[:-1] for row in rows] for rows in shown]
    widths = [max(map(len, column)) for column in zip(names, *(cells for rows in shown for cells in rows), strict=True)]
    tables = []
    for heading, rows in zip(headings, shown, strict=True):
        table = Table(title=Text(heading, style="bold"), title_justify="left")
        for place, (name, width) in enumerate(zip(names, widths, strict=True)):
            if place < 2:
                table.add_column(name, justify="right", no_wrap=True, min_width=width)
            else:  # as wide in both tables by its heading: a min_width would not shrink with the terminal
                table.add_column(Text(name.ljust(width)))
        for cells in rows:
            table.add_row(*map(Text, cells))
        tables.append(table)
    remedy = to_read([samples.show(int(index)) for ranking in rankings for index in ranking.indices], render)
    return Group(Text(title, style="italic"), *tables, *([Text(remedy)] if remedy else []))


def ranking_title(
    name: str,
    sample: ShownLine | None,
    facts: Sequence[tuple[str, str]] = (),
    averaged: str = "",
    says: str | None = None,
) -> str:
    """A sample by its name, its label, what the models say instead, the first of the `facts` about it, how that was `averaged`, and its content; what is known of these."""
    said = [" ".join([*fact, *([f"({averaged})"] if averaged else [])]) for fact in facts[:1]]
    said[:0] = [] if says is None else [f"models say {says}"]
    known = said if sample is None else [sample.label, *said, shortened(sample.line)]
    found = ", ".join(filter(None, known))
    return f"{name}: {found}" if found else name


def sample_columns(indices: Iterable[int], samples: ShowsLines | None) -> dict[str, list[str]]:
    """The columns ``label``, if any sample has one, and ``sample``, unless it has sizes of pictures only, of a table with a row for each of the
    samples; none if nothing shows them."""
    if samples is None:
        return {}
    shown = [samples.show(int(index)) for index in indices]
    labels = [each.label or "" for each in shown]
    lines = [shortened(each.line) for each in shown]
    return ({"label": labels} if any(labels) else {}) | ({} if are_picture_sizes(lines) else {"sample": lines})


def to_read(samples: Sequence[ShownLine], render: str = RENDER) -> str:
    """Say what makes rows of these samples readable, if they are not: token ids, types and sizes, columns without names, numbers for
    several labels. `render` says how what is shown is chosen: `RENDER` or, to users of the Python interface, `RENDER_IN_PYTHON`."""
    lines = [each.line for each in samples]
    ids = any(TOKEN_IDS in line for line in lines)
    sizes, in_python = _are_sizes(lines), render == RENDER_IN_PYTHON
    found = {
        UNREAD: ids,
        PICTURES_IN_PYTHON if in_python else PICTURES: (pictures := sizes and any("×" in line for line in lines)),
        FEATURE_NAMES_IN_PYTHON if in_python else FEATURE_NAMES: (unnamed := any(map(_UNNAMED.search, lines))),
        render: ids or (sizes and not pictures) or unnamed,
        CLASS_NAMES: any(_NUMBERED.fullmatch(each.label or "") for each in samples),
    }
    return "; ".join(remedy for remedy, needed in found.items() if needed)


def print_to_read(indices: Iterable[int], samples: ShowsLines | None, render: str = RENDER) -> None:
    """Print what makes the rows of these samples readable, if they are not; see `to_read`."""
    remedy = "" if samples is None else to_read([samples.show(int(index)) for index in indices], render)
    if remedy:
        print(remedy)


def _are_sizes(lines: Sequence[str]) -> bool:
    """Whether lines say no more than types, shapes and sizes of pictures, so that people do not know samples by these."""
    left = {_SIZES.sub("", line).strip(" :,·") for line in lines}
    return len(lines) > 1 and len(left) == 1 and re.fullmatch(r"\w*", left.pop()) is not None


def are_picture_sizes(lines: Sequence[str]) -> bool:
    """Whether lines say no more than the sizes of pictures, so that a column of them is empty space."""
    return all("×" in line and not _SIZES.sub("", line).strip(" :,·") for line in lines)


def _shown_rows(ranking: Ranking, samples: ShowsLines) -> Iterator[tuple[str, ...]]:
    for index, score in ranking.written():
        sample = samples.show(int(index))
        yield index, score, sample.label or "", shortened(sample.line)


def ranking_html(title: str, headings: Sequence[str], rankings: Sequence[Ranking], samples: ShowsSamples | None) -> str:
    """Make HTML of rankings of one target, for notebooks. Everything from data is escaped."""
    rows = []
    for heading, ranking in zip(headings, rankings, strict=True):
        cells = []
        for index, score in ranking.written():
            shown = None if samples is None else samples.show(int(index))
            label = "" if shown is None or shown.label is None else f"<b>{escape(shown.label)}</b> "
            content = "" if shown is None else shown.html
            cells.append(
                f"<td style='text-align:left;vertical-align:top'>{content}<div>{label}{score} #{index}</div></td>"
            )
        rows.append(f"<tr><th>{escape(heading)}</th>{''.join(cells) or f'<td>{NONE[0]}</td>'}</tr>")
    return f"<table><caption>{escape(title)}</caption>{''.join(rows)}</table>"


def figure(
    targets: Sequence[int],
    headings: Sequence[str],
    rankings: Sequence[Sequence[Ranking]],
    samples: Sequence[ShowsSamples],
) -> Any:
    """Draw each target next to its most positive and most negative training samples: images, or the first words of others.

    Raises:
        DataError: matplotlib is not installed.
    """
    with needed_for("a plot", "'trak-lightning[report]'"):
        from matplotlib.figure import Figure
        from matplotlib.image import imread
    train, target_samples = samples
    k = max([1, *(len(side.indices) for sides in rankings for side in sides)])
    drawn = Figure(figsize=(1.3 * (2 * k + 1), 1.7 * len(targets)), layout="constrained")
    grid = drawn.subplots(len(targets), 2 * k + 1, squeeze=False)
    for axes, target, sides in zip(grid, targets, rankings, strict=True):
        shown: list[tuple[ShownSample, str] | None] = [(target_samples.show(target), f"target {target}")]
        for side in sides:
            shown += [(train.show(int(index)), score) for index, score in side.written()]
            shown += [None] * (k - len(side.indices))
        for axis, found in zip(axes, shown, strict=True):
            axis.set_axis_off()
            if found is None:
                continue
            sample, title = found
            axis.set_title(f"{sample.label or ''}\n{title.partition(' ±')[0]}", fontsize=8)
            if sample.image is None:
                axis.text(0.5, 0.5, shortened(sample.line), ha="center", va="center", wrap=True, fontsize=6)
            else:
                axis.imshow(imread(io.BytesIO(sample.image)), cmap="gray")
    drawn.suptitle(f"target · {headings[0]} · {headings[1]}", fontsize=9)
    return drawn


def shortened(text: str, length: int = LINE) -> str:
    """One line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 2].rstrip()} …"


def excerpt(text: str, span: str | None) -> str:
    """A span of a text, with an ellipsis in place of what stands before and after it; the text if there is no span."""
    if span is None:
        return text
    before, _, after = text.partition(span)
    return " ".join(["…"] * bool(before.strip()) + [span.strip()] + ["…"] * bool(after.strip()))


def ending(text: str, length: int) -> str:
    """The end of a text, one line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"… {line[2 - length :]}"


def after_question(question: str, answer: str, length: int = LINE // 2) -> str:
    """An answer after its question, of at most `length` characters, if there is one."""
    return f"{shortened(question, length)} → {answer}" if question else answer
