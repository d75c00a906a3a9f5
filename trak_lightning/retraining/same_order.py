"""Compare the samples that models are trained on, perhaps augmented, with those that are attributed: position by position."""

import logging
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from torch import Tensor

from trak_lightning.data.content import content_hash
from trak_lightning.data.dataset import AttributionData
from trak_lightning.errors import DataError
from trak_lightning.featurize.reuse import SECONDS, ContentSample, probing_order
from trak_lightning.run.atomic import atomic_create
from trak_lightning.run.content_hashes import UNKNOWN, changed
from trak_lightning.run.formatting import counted, listed
from trak_lightning.run.numpy_files import read_npz, write_npz

log = logging.getLogger(__name__)

SAME = 0.3
"""Cohen's κ of the labels at equal positions: 0 by chance, as in another order, and 1 − s if a share s is drawn at random."""


def require_same_order(attributed: AttributionData, trained: AttributionData, *, names: tuple[str, str]) -> None:
    """Read samples at the same positions of both, for two seconds, evenly spread; augmentation may change the trained ones.

    Seen are samples that are, as a whole, another one; and entries of a sample, such as its label, that hold one number or text
    and agree no better than by chance. `names` are those of the two loaders.

    Warns, in the log, if such entries agree in most samples and not in all.

    Raises:
        DataError: the orders differ.
    """
    started, positions, pairs = perf_counter(), [], []
    for at in probing_order(len(attributed)):
        positions.append(at)
        pairs.append((_values(attributed.dataset[at]), _values(trained.dataset[at])))
        if perf_counter() - started > 2 * SECONDS:
            break
    ours, theirs = names
    then, now = ([values[""] for values in each] for each in zip(*pairs, strict=True))
    for at, place in _moved(positions, then, now):
        raise DataError(f"sample {at} of {theirs} is sample {place} of {ours}: the order is another one.")
    best, entry, different = _most_alike(pairs)
    if not different:
        return
    first = different[0]
    what = f"entry {entry!r} of sample {positions[first]} is {pairs[first][1][entry]!r} in {theirs} and {pairs[first][0][entry]!r} in {ours}"
    agree = f"it differs in {len(different)} of the {len(pairs)} samples that were compared"
    if best < SAME:
        raise DataError(f"{what}; {agree}, as if the order were another one.")
    log.warning(
        "data       %s; %s. Position i must be the same sample in both. If labels are changed at random on purpose, this is right.",
        what,
        agree,
    )


def record_order(data: AttributionData, path: Path) -> None:
    """Keep content hashes of the samples whose positions the training subsets next to `path` hold."""
    found = ContentSample.read(data, "sampled")
    write_npz(path, {"positions": found.positions, "hashes": found.hashes}, atomic_create)


def require_recorded_order(data: AttributionData, path: Path) -> None:
    """Refuse data in another order than that of `record_order`; runs of earlier versions have none, which passes. Warns, in the log, of samples
    that have changed.

    Raises:
        DataError: a sample is where another one was.
    """
    if not path.exists():
        return
    kept = read_npz(path, "positions", "hashes", remedy="Delete it, and the order of the data is not compared.")
    now = ContentSample.read(data, "sampled")
    hashes = dict(zip(now.positions.tolist(), now.hashes.tolist(), strict=True))
    positions, then = kept["positions"].tolist(), kept["hashes"].tolist()
    found = [hashes.get(at, UNKNOWN) for at in positions]
    for at, place in _moved(positions, then, found):
        raise DataError(
            f"sample {at} of the training data is what sample {place} was when the models in {path.parent} were trained: the order is another "
            "one, and their training subsets are positions in the earlier one. Restore it (a random split needs a generator with a seed), "
            "or use another run directory."
        )
    if others := sorted(at for at, *pair in zip(positions, then, found, strict=True) if changed(*pair)):
        log.warning(
            "train      %s of the training data %s not what the models in %s were trained on: %s. Scores are of these models. To train on the data "
            "of today, use another run directory.",
            counted(len(others), "sample"),
            "is" if len(others) == 1 else "are",
            path.parent,
            listed(others, 10),
        )


def _moved(positions: Sequence[int], then: Sequence[int], now: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the positions of samples whose hash is now that of a single other one, with the position of that one."""
    count, place = Counter(then), dict(zip(then, positions, strict=True))
    for at, before, after in zip(positions, then, now, strict=True):
        if after not in (before, UNKNOWN) and count[after] == 1:
            yield at, place[after]


def _most_alike(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[float, str, list[int]]:
    """The entry whose values agree best, with its κ, and where they differ. Values that no sample has otherwise are augmented."""
    found: list[tuple[float, str, list[int]]] = []
    for name in pairs[0][0]:
        known = {ours[name] for ours, _ in pairs if name in ours}
        both = [
            (at, ours[name], theirs[name])
            for at, (ours, theirs) in enumerate(pairs)
            if name and name in ours and theirs.get(name) in known
        ]
        before, now = Counter(value for _, value, _ in both), Counter(value for _, _, value in both)
        if len(before) > 1:
            chance = sum(before[value] * now[value] for value in before) / len(both) ** 2
            different = [at for at, ours, theirs in both if ours != theirs]
            found.append(((1 - len(different) / len(both) - chance) / (1 - chance), name, different))
    return max(found, default=(1.0, "", []))


def _values(sample: Any) -> dict[str, Hashable]:
    """The hash of a sample, under ``""``, and its entries that hold one number or text, by name."""
    entries: Any = {"": sample}
    if isinstance(sample, Mapping):
        entries = sample
    elif isinstance(sample, (tuple, list)):
        entries = dict(enumerate(sample))
    found: dict[str, Hashable] = {"": content_hash(sample)}
    for name, value in entries.items():
        if isinstance(value, (Tensor, np.ndarray, np.generic)) and np.prod(value.shape) == 1:
            value = value.item()
        if isinstance(value, (str, int, float)):
            found[str(name)] = value
    return found
