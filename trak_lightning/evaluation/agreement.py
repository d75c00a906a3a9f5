"""Do checkpoints agree? Compare the scores made from each of them alone. No torch."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from trak_lightning.errors import DataError
from trak_lightning.evaluation.lds import spearman
from trak_lightning.evaluation.result import Result
from trak_lightning.run.formatting import format_percent
from trak_lightning.scoring.base import Array, CheckpointFeatures, Scorer, evenly
from trak_lightning.scoring.views import some_targets

TARGETS = 100
"""Number of targets to compare, spread evenly."""

FIRST = 10
"""Number of most helpful samples to compare as a set."""


def require_several(checkpoints: int) -> None:
    """Raise a DataError if there is only one checkpoint."""
    if checkpoints < 2:
        raise DataError(
            "evaluation.agreement compares checkpoints and needs at least two; this run has one. Add checkpoints, or leave "
            "the setting out."
        )


def agreement(scorer: Scorer, checkpoints: Sequence[CheckpointFeatures]) -> Result:
    """Compute the rank correlation, and the overlap of the ten most helpful samples, between scores of single checkpoints
    and between scores of two halves of the ensemble.

    Raises:
        DataError: there is only one checkpoint.
    """
    require_several(len(checkpoints))
    rows = evenly(checkpoints[0].targets.spec.num_samples, TARGETS)
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
        "Scores made from different checkpoints were compared: by rank correlation over all training examples, and by the share of "
        f"the {FIRST} most helpful examples that they have in common, averaged over targets and pairs. If halves of the ensemble "
        "agree little, more checkpoints will give better scores.",
        f"rank correlation {last[0]:.3f}, {format_percent(last[1])} of the {FIRST} most helpful in common",
        ("between", "rank correlation", f"share of the first {FIRST} in common"),
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
