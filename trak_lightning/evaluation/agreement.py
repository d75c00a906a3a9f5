"""Do checkpoints agree? Scores of each alone, compared with those of the others. No torch."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from trak_lightning.errors import DataError
from trak_lightning.evaluation.lds import spearman
from trak_lightning.evaluation.result import Result
from trak_lightning.scoring.base import Array, CheckpointFeatures, Scorer
from trak_lightning.scoring.views import some_targets

TARGETS = 100
"""Targets that are compared, spread evenly."""

FIRST = 10
"""How many of the most helpful are compared as a set."""


def agreement(scorer: Scorer, checkpoints: Sequence[CheckpointFeatures], request: dict[str, Any]) -> Result:
    """Rank correlation, and overlap of the ten most helpful, between scores of single checkpoints and between two halves.

    Raises:
        DataError: there is one checkpoint only.
    """
    if len(checkpoints) < 2:
        raise DataError("agreement between checkpoints needs at least two of them; this run has one")
    m = checkpoints[0].targets.spec.num_samples
    rows = np.unique(np.linspace(0, m - 1, min(m, TARGETS)).astype(int))
    checkpoints = [some_targets(features, rows) for features in checkpoints]
    single = [_scores(scorer, [features]) for features in checkpoints]
    compared = {"single checkpoints": [_compare(a, b) for a, b in combinations(single, 2)]}
    if len(checkpoints) >= 4:
        halves = [_scores(scorer, checkpoints[start::2]) for start in (0, 1)]
        compared[f"halves of {len(checkpoints) // 2}"] = [_compare(*halves)]
    means = {name: np.mean(found, axis=0) for name, found in compared.items()}
    last = next(reversed(means.values()))
    return Result(
        "agreement",
        f"Agreement between checkpoints: {len(rows)} targets",
        f"Scores made from different checkpoints, compared over all training examples (rank correlation) and by their {FIRST} most helpful "
        "examples (share in common), averaged over targets and pairs. Where halves of the ensemble agree little, more checkpoints will "
        "give better scores.",
        f"rank correlation {last[0]:.3f}, {last[1]:.0%} of the {FIRST} most helpful in common",
        request,
        ("between", "rank correlation", f"of the first {FIRST} in common"),
        tuple((name, f"{rank:.3f}", f"{overlap:.0%}") for name, (rank, overlap) in means.items()),
        {name: {"correlation": float(rank), "overlap": float(overlap)} for name, (rank, overlap) in means.items()},
    )


def _scores(scorer: Scorer, checkpoints: Sequence[CheckpointFeatures]) -> Array:
    return np.concatenate(list(scorer.fit(checkpoints).blocks()))


def _compare(one: Array, other: Array) -> tuple[float, float]:
    k = min(FIRST, one.shape[1])
    first = [np.argsort(-scores, axis=1, kind="stable")[:, :k] for scores in (one, other)]
    overlap = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(*first, strict=True)])
    return float(np.nanmean(spearman(one.T, other.T))), float(overlap)
