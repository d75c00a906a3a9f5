"""What training samples do to themselves."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trak_lightning.scoring.base import Array, CheckpointFeatures, require_compatible
from trak_lightning.scoring.gram import weighting
from trak_lightning.scoring.regularization import choose


class SelfInfluence(NamedTuple):
    """One number a training sample, (n,), averaged over checkpoints."""

    self_influence: Array
    """``q_i φ_iᵀ (ΦᵀWΦ + λI)⁻¹ φ_i``: how much having a sample in training raises its own output. Large for mislabelled
    and for rare samples."""
    leverage: Array
    """``w_i φ_iᵀ (ΦᵀWΦ + λI)⁻¹ φ_i``, in 0 … 1: the share of a sample's fit that is due to itself."""


def self_influence(
    checkpoints: Sequence[CheckpointFeatures], regularization: float | str = "auto", weights: str = "auto"
) -> SelfInfluence:
    """Self-influence and leverage of every training sample; settings as for the ``trak`` scorer."""
    require_compatible(checkpoints)
    choice = choose(regularization, weights, checkpoints)
    influence, leverage = (np.zeros(checkpoints[0].train.spec.num_samples) for _ in range(2))
    for system, value in zip(choice.systems, choice.values, strict=True):
        quadratic = system.quadratic(value)
        for rows in system.features.train.blocks():
            influence[rows.index] += rows.loss_weight * quadratic[rows.index]
            leverage[rows.index] += weighting(rows, system.weights) * quadratic[rows.index]
    return SelfInfluence(influence / len(checkpoints), leverage / len(checkpoints))
