"""The linear datamodeling score (LDS): do sums of scores predict models trained on subsets?

Park et al. 2023, section 2.1. Shapes: S retrained models, n training and m target samples.
"""

from collections.abc import Iterable

import numpy as np

from trak_lightning.run.arrays import Array
from trak_lightning.scoring.calibration import correlations

ENDS = (0.025, 0.975)
"""Quantiles at the ends of a 95 % interval."""


def lds(score_blocks: Iterable[Array], subsets: Array, outputs: Array) -> Array:
    """Compute the Spearman correlation, over models j, of ``Σ_{i∈S_j} τ(z)_i`` and f(z; θ(S_j)), for each target z.

    Args:
        score_blocks: consecutive rows of the (m, n) score matrix.
        subsets: (S, n), true where a model was trained on a sample.
        outputs: (S, m), outputs of the models on the targets.

    Returns:
        (m,); NaN for a target whose outputs or predictions are all equal.
    """
    return spearman(predict(score_blocks, subsets), outputs)


def predict(score_blocks: Iterable[Array], subsets: Array) -> Array:
    """Sum ``Σ_{i∈S_j} τ(z)_i`` for each model j and target z: (S, m)."""
    members = subsets.astype(np.float64).T
    return np.concatenate([block @ members for block in score_blocks]).T


def spearman(predicted: Array, observed: Array) -> Array:
    """Rank correlation of the columns of two (S, m) arrays: (m,). Ties get their average rank; constant columns give NaN."""
    from scipy.stats import rankdata

    return correlations(rankdata(predicted, axis=0), rankdata(observed, axis=0))


def mean_spearman(predicted: Array, observed: Array) -> float:
    """Mean of `spearman` over the columns where it is defined; 0 if there are none."""
    found = spearman(predicted, observed)
    return float(found[~np.isnan(found)].mean()) if not np.isnan(found).all() else 0.0


def bootstrap_mean(values: Array, *, seed: int, resamples: int = 2000) -> tuple[float, float, float]:
    """Mean of those of (m,) values that are not NaN, and the ends of its 95 % percentile bootstrap interval."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), ENDS)
    return float(values.mean()), float(low), float(high)


def bootstrap_both(predicted: Array, observed: Array, *, seed: int, resamples: int = 200) -> tuple[float, float]:
    """95 % interval for the mean of `spearman` over targets, with both models and targets resampled: its two ends.

    Resampling models with replacement repeats some of them, and repeats are tied, which biases the correlation of a resample
    slightly. The interval is therefore that of the deviations from their own mean, centered on the score. Both are (S, m).
    """
    if np.isnan(spearman(predicted, observed)).all():
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        models = generator.integers(len(observed), size=len(observed))
        targets = generator.integers(observed.shape[1], size=observed.shape[1])
        draws.append(mean_spearman(predicted[np.ix_(models, targets)], observed[np.ix_(models, targets)]))
    center = mean_spearman(predicted, observed)
    low, high = np.quantile(np.array(draws) - np.mean(draws), ENDS)
    return max(center + float(low), -1.0), min(center + float(high), 1.0)


def noise_ceiling(first: Array, second: Array, *, seed: int = 0) -> tuple[float, float, float, float, float]:
    """Estimate the LDS of an error-free prediction of the expected outputs, from two models on each subset.

    Two noisy measurements of a quantity have a correlation r, its reliability; its true value has correlation √r with either
    of them (Spearman 1904, correction for attenuation).

    Args:
        first: (S, m) outputs.
        second: (S, m) outputs of models on the same subsets, with other seeds.
        seed: of the resampling.

    Returns:
        The estimate, its 95 % interval over targets, and that over models and targets.
    """
    over_targets = bootstrap_mean(spearman(first, second), seed=seed)
    found = (mean_spearman(first, second), *over_targets[1:], *bootstrap_both(first, second, seed=seed))
    estimate, low, high, low_models, high_models = (float(np.sqrt(np.maximum(value, 0.0))) for value in found)
    return estimate, low, high, low_models, high_models
