"""Self-influence and leverage of each training sample."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trak_lightning.run.meaning import Meaning
from trak_lightning.scoring.base import Array, CheckpointFeatures, require_compatible
from trak_lightning.scoring.gram import diagonal
from trak_lightning.scoring.regularization import choose
from trak_lightning.stores.base import FeatureSet


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

    def __repr__(self) -> str:
        largest = ", ".join(f"#{index}" for index in np.argsort(-self.self_influence, kind="stable")[:3])
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
            influence[rows.index] += np.abs(rows.loss_weight) * quadratic[rows.index]
            change[rows.index] += rows.loss_weight * quadratic[rows.index]
            leverage[rows.index] += diagonal(rows, system.weighting) * quadratic[rows.index]
    return SelfInfluence(*(total / len(checkpoints) for total in (influence, leverage, change)))


def held_out_probabilities(checkpoints: Sequence[CheckpointFeatures], meaning: Meaning) -> tuple[Array | None, bool]:
    """Return the mean probability of each training sample's right answer, (n,), and whether it is from held-out checkpoints.

    The mean is over the checkpoints that were not trained on the sample; over all checkpoints where there are none. None if
    the probability does not follow from the output of the task.
    """
    found = [meaning.probabilities(*columns(features.train)) for features in checkpoints]
    if any(each is None for each in found):
        return None, False
    unseen = held_out(checkpoints)
    return held_out_mean(np.stack(found), unseen), bool(unseen.any())  # type: ignore[arg-type]


def columns(rows: FeatureSet) -> tuple[Array, Array]:
    """Return output f and loss weight q of all samples, (n,) each, as `Meaning` expects them."""
    return rows.column("output"), rows.column("loss_weight")


def held_out(checkpoints: Sequence[CheckpointFeatures]) -> npt.NDArray[np.bool_]:
    """Return which checkpoints were not trained on which samples, (checkpoints, n); none if a subset is unknown."""
    unseen = np.zeros((len(checkpoints), checkpoints[0].train.spec.num_samples), dtype=bool)
    if all(features.subset is not None for features in checkpoints):
        for row, features in zip(unseen, checkpoints, strict=True):
            row[:] = True
            row[features.subset] = False
    return unseen


def held_out_mean(values: Array, unseen: npt.NDArray[np.bool_]) -> Array:
    """Average `values` (checkpoints, n, …) over the checkpoints where `unseen` (checkpoints, n); over all where there are none."""
    used = np.where(unseen.any(axis=0), unseen, True).reshape(*unseen.shape, *[1] * (values.ndim - 2))
    mean: Array = np.where(used, values, 0).sum(axis=0) / used.sum(axis=0)
    return mean
