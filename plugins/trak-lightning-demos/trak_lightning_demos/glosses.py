"""WordNet 3.0: 7,591 words with their definitions, in ten categories. Copyright 2006 by Princeton University; the license is next to
the data."""

from pathlib import Path
from typing import NamedTuple

from trak_lightning_demos.tables import read_table

GLOSSES = Path(__file__).parent / "data" / "wordnet_glosses.tsv.gz"


class Gloss(NamedTuple):
    """A word, its definition, and its category."""

    category: str
    word: str
    gloss: str


def read_glosses() -> list[Gloss]:
    """Return all glosses, in the order of the file."""
    return [Gloss(row["category"], row["word"], row["gloss"]) for row in read_table(GLOSSES)]
