"""What training on a sample does to the sample itself: as observed, and as scores predict it.

A checkpoint that was trained on a recorded part of the training set has smaller loss weights there than on the rest. Scores
predict the same difference, and it falls with λ.
"""

from dataclasses import dataclass

import numpy as np

from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.scoring.gram import diagonal, is_dual, weights_of
from trak_lightning.scoring.lanczos import quadrature
from trak_lightning.scoring.rows import as_computed, shared_blocks

PROBES = 16
STEPS = 64


@dataclass(frozen=True)
class Gap:
    """Mean |q| of the samples that a checkpoint was not trained on, minus that of those it was trained on."""

    value: float
    error: float
    """Its standard error."""


def observed_gap(features: CheckpointFeatures) -> Gap | None:
    """Return the difference for one checkpoint; None if its subset is unknown or leaves fewer than two samples out."""
    size = features.train.spec.num_samples
    if features.subset is None or not 2 <= len(features.subset) <= size - 2:
        return None
    loss_weight = np.abs(features.train.column("loss_weight").astype(np.float64))
    member = np.zeros(size, dtype=bool)
    member[features.subset] = True
    parts = loss_weight[~member], loss_weight[member]
    error = np.sqrt(sum(part.var(ddof=1) / len(part) for part in parts))
    return Gap(float(parts[0].mean() - parts[1].mean()), float(error))


def predicted_gap(features: CheckpointFeatures, gram: Array, weighting: str) -> Array:
    """Return x and c, (2, s): ``Σ c/(x + λ)`` is the mean over samples of ``r_i |q_i| φ_iᵀ (ΦᵀWΦ + λI)⁻¹ φ_i`` for any λ > 0.

    This is what scores of a sample for itself say of its loss weight: τ_ii = q_i φ_iᵀ(…)⁻¹φ_i is the change of the output,
    and r_i that of the loss weight with the output. The mean is estimated with random signs (Hutchinson 1990) and Lanczos
    quadrature.

    Args:
        features: of the checkpoint.
        gram: the lower triangle of ΦᵀWΦ, or its n × n counterpart.
        weighting: W.
    """
    n, source = features.train.spec.num_samples, features.gram_rows
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (source.spec.num_samples, PROBES))
    dual = is_dual(source)
    vectors = np.zeros((len(gram), PROBES))
    for rows in shared_blocks(features, source):
        effect = rows.curvature.astype(np.float64) * np.abs(rows.loss_weight.astype(np.float64))
        effect[len(rows) * n // len(signs) :] = (
            0  # rows with drawn labels, which are the last of a block, are no samples
        )
        weight = diagonal(rows, weighting) if dual else np.ones(len(rows))
        # In the n × n form K, the matrix is W^½ΦΦᵀW^½: φᵀ(ΦᵀWΦ + λI)⁻¹φ is the diagonal of K(K + λI)⁻¹, divided by w.
        root = np.sqrt(np.divide(effect, weight, out=np.zeros_like(effect), where=weight > 0))
        probes = root[:, None] * signs[rows.index]
        if dual:
            vectors[rows.index] = probes
        else:
            vectors += as_computed(rows.features).astype(np.float64).T @ probes
    vectors = features.backend.all_reduce(vectors)
    nodes, weights = quadrature(gram, vectors, min(STEPS, len(gram)))
    nodes = np.maximum(nodes, 0)
    return np.stack([nodes.ravel(), (weights * nodes if dual else weights).ravel() / (n * PROBES)])


def with_own_leverage(difference: float, features: CheckpointFeatures, weighting: str) -> float:
    """Return what `predicted_gap` sums to where the effect of samples on themselves, as of leaving each out, is `difference`.

    A sample's leverage in its own direction, ``h_i = w_i φ_iᵀ (ΦᵀWΦ + λI)⁻¹ φ_i``, keeps its score for itself below 1/w_i times q_i. Left
    out, it moves its output by 1/(1 − h_i) times as much (`LeaveOneOut`); the mean of h, weighted by what it is the share of, is used for all.
    """
    loss_weight, curvature = (features.train.column(name).astype(np.float64) for name in ("loss_weight", "curvature"))
    weight, effect = weights_of(loss_weight, curvature, weighting), curvature * np.abs(loss_weight)
    most = np.divide(effect, weight, out=np.zeros_like(effect), where=weight > 0).mean()  # where every h_i is 1
    return float(difference / (1 + difference / most)) if most > 0 else difference


def regularization_for(difference: float, effects: Array, low: float, high: float) -> float:
    """Return λ between `low` and `high` at which `effects`, as `predicted_gap` returns them, sum to `difference` > 0."""
    nodes, weights = effects

    def excess(log: float) -> float:
        return float((weights / (nodes + np.exp(log))).sum()) - difference

    ends = np.log([low, high])
    if excess(ends[0]) <= 0:
        return low
    if excess(ends[1]) >= 0:
        return high
    from scipy.optimize import brentq  # takes 0.2 s to import, which commands that only read do not need

    return float(np.exp(brentq(excess, *ends, xtol=1e-3)))
