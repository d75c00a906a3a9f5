"""Choose the λ, and the Gram weighting, that best predict the checkpoints themselves. Nothing is retrained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trak_lightning.errors import DataError
from trak_lightning.scoring.base import Array, CheckpointFeatures, evenly
from trak_lightning.scoring.cache import cached
from trak_lightning.scoring.linear_system import System
from trak_lightning.scoring.rows import as_computed, shared_blocks

GRID = np.logspace(-1.5, -5.5, 9)
"""Candidates for λ, in units of each checkpoint's own trace(ΦᵀWΦ); between them the curve is taken as a parabola."""

FEWEST = 4
"""The fewest checkpoints over which a correlation can be computed."""

JUDGES = 2000
"""Number of training samples, evenly spaced, that scores are judged on."""


@dataclass(frozen=True)
class Calibration:
    """The best pair of λ and Gram weighting, and the curves that it was chosen from."""

    weighting: str
    relative: float
    """λ/trace."""
    settings: dict[str, Any]
    """``curve``: LDS at every λ/trace in ``relative``, for each weighting."""


def knows_subsets(checkpoints: Sequence[CheckpointFeatures]) -> bool:
    """Return whether there are `FEWEST` checkpoints or more, each with the part of the training set that it was trained on."""
    return len(checkpoints) >= FEWEST and all(map(trained_on_part, checkpoints))


def trained_on_part(features: CheckpointFeatures) -> bool:
    """Return whether the checkpoint was trained on a recorded part of the training set."""
    return features.subset is not None and len(features.subset) < features.train.spec.num_samples


def require_calibration(checkpoints: Sequence[CheckpointFeatures]) -> None:
    """Refuse checkpoints whose subsets are not known.

    Raises:
        DataError: there are fewer than four checkpoints, or subsets are unknown or hold every sample.
    """
    if knows_subsets(checkpoints):
        return
    unknown = sum(features.subset is None for features in checkpoints)
    raise DataError(
        f"regularization='calibrate' needs at least {FEWEST} checkpoints, each with the part of the training set that it was "
        f"trained on; there are {len(checkpoints)}, {unknown} of them without. Give subsets=…, train the checkpoints with "
        "trak train, or use regularization='auto'."
    )


def calibration(checkpoints: Sequence[CheckpointFeatures], weightings: Sequence[str]) -> Calibration:
    """Maximize a cross-validated linear datamodeling score over the checkpoints.

    Checkpoint j was trained on a recorded subset S_j, and its outputs on training samples z are stored: scores of z made
    from the *other* checkpoints are summed over S_j and correlated with f(z; θ_j) over j; the correlation is averaged over
    z. Training samples serve as targets because there are many, and because λ then does not depend on the targets.
    """
    everything = [[features.gram_identity, np.asarray(features.subset).tolist()] for features in checkpoints]
    key = [everything, list(weightings), GRID.tolist(), JUDGES]
    name = f"calibration-{'-'.join(weightings)}"
    curves = cached(checkpoints[0], name, key, lambda: _curves(checkpoints, weightings))
    peaks = [peak(curve) for curve in curves]
    best = int(np.argmax([height for _, height in peaks]))
    curve = {name: [float(value) for value in row] for name, row in zip(weightings, curves, strict=True)}
    return Calibration(weightings[best], peaks[best][0], {"curve": {"relative": GRID.tolist(), "lds": curve}})


def _curves(checkpoints: Sequence[CheckpointFeatures], weightings: Sequence[str]) -> Array:
    """Return the mean correlation for every weighting and λ: (weightings, λ)."""
    M, n = len(checkpoints), checkpoints[0].train.spec.num_samples
    judges = evenly(n, JUDGES)
    outputs = np.stack([features.train.column("output")[judges] for features in checkpoints]).astype(np.float64)
    predicted = np.zeros((len(weightings), len(GRID), M, len(judges)))
    loss_weights = np.stack([features.train.column("loss_weight") for features in checkpoints], axis=1)
    subsets = masks(checkpoints, loss_weights.astype(np.float64))
    for m, features in enumerate(checkpoints):
        sums, rows = weighted_sums(features, subsets), features.train.take(judges)
        others = [j for j in range(M) if j != m]
        for w, name in enumerate(weightings):
            predicted[w][:, others] += System(features, name).products(sums, rows, GRID)[:, others]
    members = _members(checkpoints, judges)
    return np.array([[_agreement(prediction, outputs, members) for prediction in row] for row in predicted])


def _agreement(predicted: Array, observed: Array, members: Array) -> float:
    """Return the correlation of predicted and observed outputs (M, s) over checkpoints, averaged over samples.

    Checkpoints that were trained on the sample itself are compared among themselves, and so are the others. A sample
    raises its own output at any λ; comparing the two kinds would favor the λ that best tells samples apart.
    """
    residuals = []
    for values in (predicted, observed):
        residual = values.copy()
        for group in (members, ~members):
            size = np.maximum(group.sum(0), 1)
            residual -= group * ((values * group).sum(0) / size)
        residuals.append(residual)
    found = correlations(*residuals)
    return 0.0 if np.isnan(found).all() else float(np.nanmean(found))


def correlations(predicted: Array, observed: Array) -> Array:
    """Return the correlation of each column of two (M, t) arrays, (t,); NaN where a column is constant."""
    one, other = (values - values.mean(axis=0) for values in (predicted, observed))
    norm = np.sqrt((one**2).sum(axis=0) * (other**2).sum(axis=0))
    return np.divide((one * other).sum(axis=0), norm, out=np.full_like(norm, np.nan), where=norm > 0)


def masks(checkpoints: Sequence[CheckpointFeatures], coefficients: Array) -> Array:
    r"""(1_{S_j} − \|S_j|/n) ∘ (coefficients averaged over the checkpoints other than j), one column for each j: (n, M).

    Without subtracting the mean, sums for different j would differ because their scores come from different checkpoints,
    whatever the subset.

    Args:
        checkpoints: with recorded subsets.
        coefficients: (n, M), such as the loss weights.
    """
    n, M = coefficients.shape
    found = np.empty_like(coefficients)
    for j, features in enumerate(checkpoints):
        member = np.zeros(n)
        member[features.subset] = 1
        found[:, j] = (member - member.mean()) * (coefficients.sum(1) - coefficients[:, j]) / (M - 1)
    return found


def _members(checkpoints: Sequence[CheckpointFeatures], samples: Array) -> Array:
    """Return whether checkpoint j was trained on each sample: (M, s)."""
    return np.stack([np.isin(samples, np.asarray(features.subset)) for features in checkpoints])


def weighted_sums(features: CheckpointFeatures, weights: Array) -> Array:
    """Return weightsᵀ Φ for weights (n, M): (M, k)."""
    total = np.zeros((weights.shape[1], features.train.spec.dim))
    for rows in shared_blocks(features):
        stored = as_computed(rows.features)
        total += weights[rows.index].T.astype(stored.dtype) @ stored
    return features.backend.all_reduce(total)


def peak(curve: Array) -> tuple[float, float]:
    """Return λ/trace at the top of the parabola through the best point and its neighbors, and the height there."""
    i = int(np.argmax(curve))
    if not 0 < i < len(curve) - 1:
        return float(GRID[i]), float(curve[i])
    left, top, right = curve[i - 1 : i + 2]
    bend = left - 2 * top + right
    shift = 0.5 * (left - right) / bend if bend < 0 else 0.0
    step = np.log(GRID[i + 1] / GRID[i])
    return float(GRID[i] * np.exp(shift * step)), float(top - 0.25 * (left - right) * shift)
