"""Tables in text files."""

import csv
import gzip
from pathlib import Path
from typing import Any

from trak_lightning.errors import DataError


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of a ``.csv`` or ``.tsv`` file with a header line, gzipped or not. Quotation marks have no meaning in
    tab-separated files, as in those of GLUE.

    Raises:
        DataError: the file does not exist, or a row has more or fewer values than there are columns.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path} (looked in {path.absolute().parent})")
    packed = path.suffix == ".gz"
    kind = Path(path.stem).suffix if packed else path.suffix
    if kind not in (".csv", ".tsv"):
        raise DataError(
            f"{path} must be a .csv or .tsv file, or one of these with .gz added; it ends in {path.suffix!r}"
        )
    quoting: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {}
    with (gzip.open if packed else open)(path, "rt", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, **quoting)
        rows = list(reader)
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise DataError(f"{path}: row {number + 1} does not have {len(reader.fieldnames or ())} values")
    return rows


def columns(rows: list[dict[str, str]], names: list[str], path: str | Path) -> list[tuple[str, ...]]:
    """Return the values of some columns of every row.

    Raises:
        DataError: a column does not exist.
    """
    known = list(rows[0]) if rows else []
    for name in names:
        if name not in known:
            raise DataError(f"{path} has no column {name!r}; its columns are {', '.join(known)}")
    return [tuple(row[name] for name in names) for row in rows]
