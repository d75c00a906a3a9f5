"""Self-influence and leverage of each training sample."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trak_lightning.scoring.base import Array, CheckpointFeatures, require_compatible
from trak_lightning.scoring.gram import diagonal
from trak_lightning.scoring.ranking import Ranking
from trak_lightning.scoring.regularization import choose


class SelfInfluence(NamedTuple):
    """One number per training sample, (n,), averaged over checkpoints."""

    self_influence: Array
    """``|q_i| φ_iᵀ (ΦᵀWΦ + λI)⁻¹ φ_i``: how far having a sample in training moves its own output, in the direction that
    lowers its loss. Never negative; large for mislabeled and for rare samples."""
    leverage: Array
    """``w_i φ_iᵀ (ΦᵀWΦ + λI)⁻¹ φ_i``, in 0 … 1: the share of a sample's fit that comes from the sample itself."""
    output_change: Array
    """``q_i φ_iᵀ (ΦᵀWΦ + λI)⁻¹ φ_i``: self-influence with the sign of q, positive where the output rises. It is negative
    for a regression whose label is below the output."""

    def top(self, k: int = 10) -> Ranking:
        """Return the k samples of largest self-influence, (k,)."""
        indices = np.argsort(-self.self_influence, kind="stable")[:k]
        return Ranking(indices, self.self_influence[indices])

    def __repr__(self) -> str:
        largest = ", ".join(f"#{index}" for index in self.top(3).indices)
        return f"SelfInfluence of {len(self.leverage)} training samples, largest: {largest}"


def self_influence(
    checkpoints: Sequence[CheckpointFeatures], regularization: float | str = "auto", weights: str = "auto"
) -> SelfInfluence:
    """Compute self-influence and leverage of every training sample; settings as for the ``trak`` scorer.

    Self-influence is the size of a sample's effect on itself, whatever the sign of its loss weight, so that a regression's
    labels that are too low rank as high as those that are too large.
    """
    require_compatible(checkpoints)
    chosen = choose(regularization, weights, checkpoints)
    influence, leverage, change = (np.zeros(checkpoints[0].train.spec.num_samples) for _ in range(3))
    for system, value in zip(chosen.systems, chosen.values, strict=True):
        quadratic = system.quadratic(value)
        for rows in system.features.train.blocks():
            effect = system.unit * rows.loss_weight * quadratic[rows.index]
            influence[rows.index] += np.abs(effect)
            change[rows.index] += effect
            leverage[rows.index] += diagonal(rows, system.weighting) * quadratic[rows.index]
    return SelfInfluence(*(total / len(checkpoints) for total in (influence, leverage, change)))
