"""Are stored rows those that something was made from? By hashes of the samples, and outputs of some targets. No torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash

from trak_lightning.errors import IncompleteRunError, StaleRowsError
from trak_lightning.run.arrays import Array, rms
from trak_lightning.scoring.base import evenly
from trak_lightning.scoring.scores import Scores
from trak_lightning.stores.base import FeatureSet, FeatureStore

OUTPUTS = 100
"""How many outputs say of which function the rows are."""

TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-2, 0.1
"""Largest difference of these outputs, relative to their size: devices round differently, and more so in 16 bits or fewer."""


def described(train: FeatureSet, targets: FeatureSet, counts: tuple[int, int] | None = None) -> dict[str, Any]:
    """What the rows of both splits under one checkpoint are of. JSON.

    Args:
        train: rows of the training samples.
        targets: rows of the targets.
        counts: how many samples of each to describe, the first ones; all if None.

    Raises:
        IncompleteRunError: rows are missing.
    """
    n, m = counts or (train.spec.num_samples, targets.spec.num_samples)
    return {
        "checkpoint": train.spec.checkpoint,
        "counts": [n, m],
        "training samples": _samples(train, n),
        "targets": _samples(targets, m),
        "outputs": targets.column("output")[evenly(m, OUTPUTS)].tolist(),
        "exact": targets.spec.fingerprint.get("precision") in ("32-true", "64-true"),
    }


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What the rows of now are of that those of then were not, in words; None if they are of the same."""
    for name in ("training samples", "targets"):
        if then[name] != now[name]:
            return f"other {name}"
    if then["checkpoint"] != now["checkpoint"]:
        return None  # whose outputs are others
    before, after = (np.array(each["outputs"]) for each in (then, now))
    changed, size = rms(after - before), rms(before)
    if changed <= (TOLERANCE if now["exact"] else LOW_PRECISION_TOLERANCE) * size:
        return None
    return f"another function (outputs differ by {changed:.3g}, of {size:.3g}: the code of the model or the task has changed)"


def since_scored(store: FeatureStore, scores: Scores) -> str | None:
    """The `difference` of the stored rows from those that scores were made from; None if there are none of these scores any more."""
    then = scores.settings.get("rows")
    if then is None:
        return None
    splits = scores.settings["train_split"], scores.settings["target_split"]
    if not {(split, then["checkpoint"]) for split in splits} <= set(store.list()):
        return None
    train, targets = (store.open(split, then["checkpoint"]) for split in splits)
    n, m = then["counts"]
    try:
        return difference(then, described(train, targets, (n, m)))
    except IncompleteRunError:
        return None  # rows that are being added; what would be shown of the others is asked of them


def require_scored(store: FeatureStore, scores: Scores) -> None:
    """Refuse to show scores next to samples, labels and predictions of rows that they were not made from.

    Raises:
        StaleRowsError: they were made from others.
    """
    if (what := since_scored(store, scores)) is not None:
        raise StaleRowsError(
            f"the stored rows are of {what} than the scores in {scores.path}, which were made before. Compute the scores again: trak score, "
            "with the options that they were made with, or TRAK.score in Python."
        )


def _samples(features: FeatureSet, count: int) -> str:
    """A hash of the content of the first samples; where it is not known, what the settings say of the data."""
    content: Array = features.column("content")[:count]
    if not content.any():
        return str(features.spec.fingerprint.get("data"))
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(content).data)
