"""Independent parts of a featurizing job: ``3/16`` is the third of sixteen. Needs no torch."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from trak_lightning.errors import CorruptFileError, SettingsError
from trak_lightning.run.atomic import atomic_write
from trak_lightning.run.directory import RunDirectory, read_json
from trak_lightning.run.formatting import format_ranges
from trak_lightning.stores.base import FeatureSet, FeatureStore


@dataclass(frozen=True)
class Shard:
    """Number `index` of `count`, counted from 1.

    The blocks of all feature sets, one checkpoint after the other, are divided into `count` sequences whose lengths differ by
    at most one block. The division depends on the sets alone, so that a shard that is run again computes the same blocks.
    """

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read a shard such as ``3/16``.

        Raises:
            SettingsError: the text is anything else; names the shards that exist.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if found is None:
            raise SettingsError(f"shard must be like 3/16, the third of sixteen, got {text!r}")
        index, count = int(found[1]), int(found[2])
        if not 1 <= index <= count:
            raise SettingsError(
                f"there is no shard {text!r}: shards are counted from 1"
                + (f", 1/{count} to {count}/{count}" if count else "")
            )
        return cls(index, count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def blocks(self, sets: Sequence[FeatureSet]) -> list[range]:
        """The blocks of each set that belong to this shard."""
        ends = list(accumulate(found.spec.num_blocks for found in sets))
        total = ends[-1] if ends else 0
        first, last = total * (self.index - 1) // self.count, total * self.index // self.count
        return [
            range(*(min(max(edge - end + found.spec.num_blocks, 0), found.spec.num_blocks) for edge in (first, last)))
            for found, end in zip(sets, ends, strict=True)
        ]

    def record(self, run: RunDirectory) -> None:
        """Record the number of shards, for `unfinished`."""
        if self.count > 1 and _count(run) != self.count:
            with atomic_write(run.path / _FILE) as part:
                part.write_text(json.dumps({"count": self.count}))


def unfinished(run: RunDirectory, store: FeatureStore, split: str) -> str:
    """The shards that lack blocks of a split, as ``shards 3, 7–9 of 16``; empty if none does, or if there are no shards."""
    count = _count(run)
    if not count:
        return ""
    there = store.list()
    if missing_sets := [record.id for record in run.read().checkpoints if (split, record.id) not in there]:
        return f"all shards of {count}, which have not started checkpoint {missing_sets[0]}"
    sets = [store.open(split, record.id) for record in run.read().checkpoints]
    missing = [set(found.missing_blocks()) for found in sets]
    found = [
        index
        for index in range(1, count + 1)
        if any(lacks.intersection(own) for lacks, own in zip(missing, Shard(index, count).blocks(sets), strict=True))
    ]
    return (
        f"shard{'s' if len(found) > 1 else ''} {format_ranges(range(shard, shard + 1) for shard in found)} of {count}"
        if found
        else ""
    )


_FILE = "shards.json"


def _count(run: RunDirectory) -> int:
    path = run.path / _FILE
    if not path.exists():
        return 0
    try:
        return int(read_json(path)["count"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path} does not hold the number of shards ({error}). Delete it.") from None
