"""Samples that are in a dataset twice: bit for bit, or nearly so as the model sees them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from trak_lightning.data.content import content_hash
from trak_lightning.report.samples import Samples
from trak_lightning.report.values import integer
from trak_lightning.run.content_hashes import UNKNOWN
from trak_lightning.scoring.gradient_scorers import unit_rows
from trak_lightning.scoring.rows import as_computed
from trak_lightning.stores.base import FeatureSet

MOST_SAMPLES = 50_000
"""Largest number of samples that are read to find exact copies."""

MOST_ROWS = 20_000
"""Largest training set of which all pairs of features are compared."""

SIMILAR = 0.98
"""Cosine of two projected gradients above which their samples are shown as near duplicates."""


@dataclass(frozen=True)
class Group:
    """Samples with the same content, as positions in the training set and among the targets."""

    train: tuple[int, ...]
    targets: tuple[int, ...]
    conflicting: bool
    """Whether their labels differ."""


@dataclass(frozen=True)
class Pair:
    """Two training samples with nearly parallel gradients."""

    first: int
    second: int
    cosine: float


def exact(train: Samples, targets: Samples) -> list[Group] | None:
    """Find groups of at least two samples with equal content, whatever their labels, one of them in the training set.

    The content is what the model is given, if the task names it; otherwise all but integers that number the training samples.

    Returns None if there are more than `MOST_SAMPLES` to read.
    """
    if len(train) + len(targets) > MOST_SAMPLES:
        return None
    found = []
    for which, samples in enumerate((train, targets)):
        for index in range(len(samples)):
            content, label = samples.split(samples[index])
            rest, integers = _apart(samples.seen(content))
            if (hashed := content_hash(rest)) != UNKNOWN:
                found.append((which, index, label, hashed, integers))
    numbers = _numbering([integers for which, *_, integers in found if which == 0])
    places: dict[Any, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    labels: dict[Any, set[Any]] = defaultdict(set)
    for which, index, label, hashed, integers in found:
        key = hashed, frozenset(item for item in integers.items() if item[0] not in numbers)
        places[key][which].append(index)
        labels[key].add(label)
    return [
        Group(tuple(in_train), tuple(in_targets), len(labels[key]) > 1)
        for key, (in_train, in_targets) in places.items()
        if in_train and len(in_train) + len(in_targets) > 1
    ]


def _apart(content: Any) -> tuple[Any, dict[str, int]]:
    """The content of a sample without the single integers of a mapping, and these."""
    if not isinstance(content, Mapping):
        return content, {}
    integers = {str(name): number for name, value in content.items() if (number := integer(value)) is not None}
    return {name: value for name, value in content.items() if str(name) not in integers}, integers


def _numbering(rows: Sequence[Mapping[str, int]]) -> set[str]:
    """The names of integers that differ between all samples, such as a row of a table or an identifier."""
    columns: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        for name, number in row.items():
            columns[name].append(number)
    return {name for name, values in columns.items() if 1 < len(values) == len(rows) == len(set(values))}


class Similar(NamedTuple):
    """The pairs of training samples with the largest cosine of features above `SIMILAR`, and how many there are."""

    pairs: list[Pair]
    number: int


def similar(features: FeatureSet, most: int = 20) -> Similar | None:
    """Find pairs of training samples with a large cosine of features; None if there are too many rows."""
    n = features.spec.num_samples
    if n > MOST_ROWS:
        return None
    found, count = list[Pair](), 0
    rows = np.concatenate([unit_rows(as_computed(block.features)).astype(np.float32) for block in features.blocks()])
    for start in range(0, n, 1024):
        cosines = rows[start : start + 1024] @ rows[start:].T
        first, second = np.nonzero(np.triu(cosines > SIMILAR, k=1))
        count += len(first)
        largest = np.argsort(-cosines[first, second], kind="stable")[:most]
        first, second = first[largest], second[largest]
        found += [
            Pair(start + int(i), start + int(j), float(cosines[i, j])) for i, j in zip(first, second, strict=True)
        ]
        found = sorted(found, key=lambda pair: -pair.cosine)[:most]
    return Similar(found, count)
