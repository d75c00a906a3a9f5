"""Self-influence and leverage of each training sample."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from trak_lightning.scoring.base import Array, CheckpointFeatures, require_compatible
from trak_lightning.scoring.gram import diagonal
from trak_lightning.scoring.regularization import choose


class SelfInfluence(NamedTuple):
    """One number per training sample, (n,), averaged over checkpoints."""

    self_influence: Array
    """``q_i φ_iᵀ (ΦᵀWΦ + λI)⁻¹ φ_i``: how much having a sample in training raises its own output. Large for mislabeled
    and for rare samples."""
    leverage: Array
    """``w_i φ_iᵀ (ΦᵀWΦ + λI)⁻¹ φ_i``, in 0 … 1: the share of a sample's fit that comes from the sample itself."""


def self_influence(
    checkpoints: Sequence[CheckpointFeatures], regularization: float | str = "auto", weights: str = "auto"
) -> SelfInfluence:
    """Compute self-influence and leverage of every training sample; settings as for the ``trak`` scorer."""
    require_compatible(checkpoints)
    chosen = choose(regularization, weights, checkpoints)
    influence, leverage = (np.zeros(checkpoints[0].train.spec.num_samples) for _ in range(2))
    for system, value in zip(chosen.systems, chosen.values, strict=True):
        quadratic = system.quadratic(value)
        for rows in system.features.train.blocks():
            influence[rows.index] += rows.loss_weight * quadratic[rows.index]
            leverage[rows.index] += diagonal(rows, system.weighting) * quadratic[rows.index]
    return SelfInfluence(influence / len(checkpoints), leverage / len(checkpoints))


def held_out_probabilities(checkpoints: Sequence[CheckpointFeatures]) -> tuple[Array, bool]:
    """Return the mean probability of each training sample's label, (n,), and whether it is from held-out checkpoints.

    The mean is over the checkpoints that were not trained on the sample; over all checkpoints where there are none.
    """
    probabilities = np.stack([expit(features.train.column("output")) for features in checkpoints])
    if any(features.subset is None for features in checkpoints):
        return probabilities.mean(axis=0), False
    unseen = np.ones(probabilities.shape, dtype=bool)
    for row, features in zip(unseen, checkpoints, strict=True):
        row[features.subset] = False
    count = unseen.sum(axis=0)
    if not count.any():
        return probabilities.mean(axis=0), False
    total = np.where(unseen, probabilities, 0).sum(axis=0)
    return np.divide(total, count, out=probabilities.mean(axis=0), where=count > 0), True
