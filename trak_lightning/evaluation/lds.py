"""The linear datamodeling score (LDS): do sums of scores predict models trained on subsets?

Park et al. 2023, section 2.1. Shapes: S retrained models, n training and m target samples.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def lds(score_blocks: Iterable[Array], subsets: Array, outputs: Array) -> Array:
    """Spearman correlation, over models j, of ``Σ_{i∈S_j} τ(z)_i`` and f(z; θ(S_j)), for every target z.

    Args:
        score_blocks: consecutive rows of the (m, n) score matrix.
        subsets: (S, n), true where a model was trained on a sample.
        outputs: (S, m), what the models say of the targets.

    Returns:
        (m,); NaN for a target whose outputs or predictions are all equal.
    """
    members = subsets.astype(np.float64).T
    predictions = np.concatenate([block @ members for block in score_blocks])
    return spearman(predictions.T, outputs)


def spearman(predicted: Array, observed: Array) -> Array:
    """Rank correlation down the columns of two (S, m) arrays: (m,). Ties get their average rank; constants give NaN."""
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=0) for values in (predicted, observed)]
    centered = [rank - rank.mean(axis=0) for rank in ranks]
    norm = np.sqrt((centered[0] ** 2).sum(axis=0) * (centered[1] ** 2).sum(axis=0))
    covariance = (centered[0] * centered[1]).sum(axis=0)
    return np.divide(covariance, norm, out=np.full_like(norm, np.nan), where=norm > 0)


def mean_spearman(predicted: Array, observed: Array) -> float:
    """The mean of `spearman` over the columns that have one; 0 if none has."""
    found = spearman(predicted, observed)
    return float(found[~np.isnan(found)].mean()) if not np.isnan(found).all() else 0.0


def bootstrap_mean(
    values: Array, *, seed: int, resamples: int = 2000, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean of (m,) values without NaN, and the ends of its percentile bootstrap interval."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(values.mean()), float(low), float(high)
