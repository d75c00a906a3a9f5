"""Scorers without a Gram matrix: inner products of gradients."""

from collections.abc import Sequence

import numpy as np

from trak_lightning.scoring.base import Array, CheckpointFeatures, Scorer, Scoring
from trak_lightning.scoring.inner_products import InnerProducts, Part
from trak_lightning.stores.base import FeatureRows


class GradientDot(Scorer):
    """``τ(z)_i = ( (1/M) Σ_m φ_m(z)·φ_m(z_i) ) · ( (1/M) Σ_m q_m,i )``: TRAK without the Gram matrix.

    The default projector scales each entry of a gradient by v^(−1/4), with v its second moment; with ``identity`` these are inner
    products of plain gradients, and with ``sparse_jl`` estimates of them.
    """

    def fit(self, checkpoints: Sequence[CheckpointFeatures]) -> Scoring:
        return InnerProducts(checkpoints, [Part()] * len(checkpoints))


class TracIn(Scorer):
    """``τ(z)_i = (1/M) Σ_m q_m,i φ_m(z)·φ_m(z_i)``: how training steps on the loss of z_i moved the target's output.

    TracInCP (Pruthi et al. 2020, section 3.2) at a constant learning rate, for checkpoints of one or several trainings. The default
    projector scales the entries of gradients by their second moments; with ``sparse_jl`` or ``identity`` these are plain gradients.
    """

    def fit(self, checkpoints: Sequence[CheckpointFeatures]) -> Scoring:
        return InnerProducts(checkpoints, [Part()] * len(checkpoints), average="scores")


class GradientCosine(Scorer):
    """``τ(z)_i = (1/M) Σ_m cos(φ_m(z), q_m,i φ_m(z_i))``: `TracIn` with gradients of unit length."""

    def fit(self, checkpoints: Sequence[CheckpointFeatures]) -> Scoring:
        return InnerProducts(checkpoints, [Part(unit_rows, _inverse_norm)] * len(checkpoints), average="scores")


def norms(features: Array) -> Array:
    """Return Euclidean norms (b,) in float64; 1 for rows of zeros, so that dividing by the norm leaves them zero."""
    found: Array = np.sqrt(np.einsum("bk,bk->b", features, features, dtype=np.float64))
    return np.where(found > 0, found, 1)


def unit_rows(features: Array) -> Array:
    """Return rows (b, k) scaled to unit length."""
    return features / norms(features)[:, None]


def _inverse_norm(rows: FeatureRows) -> Array:
    return np.sign(rows.loss_weight) / norms(rows.features)
