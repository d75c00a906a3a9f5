"""Does the kernel of one checkpoint predict what the other checkpoints say? λ from that, with nothing recorded."""

from collections.abc import Sequence

import numpy as np

from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.scoring.cache import cached
from trak_lightning.scoring.calibration import GRID, JUDGES, peak, select
from trak_lightning.scoring.gram import weighting
from trak_lightning.scoring.inner_products import as_computed
from trak_lightning.scoring.system import System
from trak_lightning.stores.validation import identity

KERNELS = 3
"""How many checkpoints' kernels are looked at; each predicts the mean of all other checkpoints."""


def agreeing(checkpoints: Sequence[CheckpointFeatures], weights: str) -> tuple[float, Array]:
    """λ/trace at which the leave-one-out error of a kernel regression is least, and that error along `GRID`.

    Ridge regression on the features of checkpoint m, weighted by W, of the outputs that the other checkpoints give on
    average: ``f̂(z_i) = φ_iᵀ (ΦᵀWΦ + λI)⁻¹ ΦᵀW f̄``. The error without sample i is ``(f̄_i − f̂_i) / (1 − h_i)``, with
    ``h_i = w_i φ_iᵀ (ΦᵀWΦ + λI)⁻¹ φ_i``; its weighted mean square is the criterion. Projection noise and the noise of
    training are in it, since the other checkpoints were trained otherwise. At least two checkpoints.
    """
    first = checkpoints[0]
    key = [[identity(features.train.spec) for features in checkpoints], weights, GRID.tolist(), JUDGES, KERNELS]
    errors = cached(first.cache, f"agreement-{weights}", first.train, key, lambda: _errors(checkpoints, weights))
    return peak(-errors)[0], errors


def _errors(checkpoints: Sequence[CheckpointFeatures], weights: str) -> Array:
    n = checkpoints[0].train.spec.num_samples
    judges = np.unique(np.linspace(0, n - 1, min(n, JUDGES)).astype(np.int64))
    outputs = np.stack([features.train.column("output") for features in checkpoints]).astype(np.float64)
    errors = np.zeros(len(GRID))
    kernels = range(min(KERNELS, len(checkpoints)))
    for m in kernels:
        features = checkpoints[m]
        others = (outputs.sum(0) - outputs[m]) / (len(outputs) - 1)
        moment, weight = np.zeros(features.train.spec.dim), np.empty(n)
        for block in features.train.blocks():
            weight[block.index] = weighting(block, weights)
            moment += (weight[block.index] * others[block.index]) @ as_computed(block.features)
        rows, system = select(features, judges), System(features, weights)
        for position, relative in enumerate(GRID):
            solved = system.trial(float(relative) * system.trace).solve(rows)
            leverage = weight[judges] * np.einsum("bk,bk->b", solved, rows)
            residual = (others[judges] - solved @ moment) / (1 - np.minimum(leverage, 1 - 1e-6))
            errors[position] += (weight[judges] * residual**2).sum() / weight[judges].sum() / len(kernels)
    return errors
