"""ΦᵀWΦ + λI of one checkpoint: computed once, kept in the run directory."""

from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import eigvalsh

from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.scoring.cache import cached
from trak_lightning.scoring.gram import gram, is_dual
from trak_lightning.scoring.inner_products import as_computed
from trak_lightning.scoring.inverse import (
    ILL_CONDITIONED,
    DualCholesky,
    Inverse,
    PrimalCholesky,
    PseudoInverse,
    cholesky_factor,
    condition_number,
    eigenvectors,
    warn_ill_conditioned,
)


class System:
    """The weighted Gram matrix of one checkpoint, and its inverses."""

    def __init__(self, features: CheckpointFeatures, weights: str) -> None:
        self.features = features
        self.weights = weights

    @cached_property
    def trace(self) -> float:
        """trace(ΦᵀWΦ) = Σ_i w_i ‖φ_i‖², the unit in which λ is chosen."""
        return float(np.trace(self._gram))

    def inverse(self, regularization: float) -> Inverse:
        """(ΦᵀWΦ + λI)⁻¹ for λ > 0 by a Cholesky factor; for λ = 0, or where that fails, by eigenvectors.

        Warns:
            IllConditionedWarning: the condition number exceeds `ILL_CONDITIONED`.
        """
        factor = self._keep("factor", regularization, lambda: self._factor(regularization))
        if factor.shape[0] == factor.shape[1]:
            if is_dual(self.features.train):
                return DualCholesky(factor, self.features.train, self.weights, regularization)
            return PrimalCholesky(factor)
        values, vectors = factor[0], factor[1:]
        condition = float(values[-1] / values[0]) if len(values) else float("inf")
        if condition > ILL_CONDITIONED:
            warn_ill_conditioned(condition, regularization, f"the pseudo-inverse of rank {len(values)} is used")
        return PseudoInverse(values, vectors)

    def quadratic(self, regularization: float) -> Array:
        """``φ_iᵀ (ΦᵀWΦ + λI)⁻¹ φ_i`` of every training sample: (n,)."""
        return self._keep("quadratic", regularization, lambda: self._quadratic(regularization))

    def spectrum(self) -> Array:
        """The eigenvalues of ΦᵀWΦ that may differ from zero, ascending: (min(n, k),)."""
        return self._keep("spectrum", None, lambda: eigvalsh(self._gram, lower=True, check_finite=False))

    def trial(self, regularization: float) -> Inverse:
        """As `inverse` for λ > 0, without keeping the factor."""
        factor = self._factor(regularization)
        if factor.shape[0] != factor.shape[1]:
            return PseudoInverse(factor[0], factor[1:])
        if is_dual(self.features.train):
            return DualCholesky(factor, self.features.train, self.weights, regularization)
        return PrimalCholesky(factor)

    @cached_property
    def _gram(self) -> Array:
        return self._keep("gram", None, lambda: gram(self.features.train, self.weights))

    def _factor(self, regularization: float) -> Array:
        """C, square; or eigenvalues of ΦᵀWΦ + λI (first row) over eigenvectors (k rows), one more row than columns."""
        if regularization > 0:
            factor = cholesky_factor(self._gram, regularization)
            if factor is not None:
                condition = condition_number(self._gram, factor)
                if condition > ILL_CONDITIONED:
                    warn_ill_conditioned(condition, regularization, "nothing was done about it")
                return factor
        values, vectors = eigenvectors(self._gram, self.features.train, self.weights)
        return np.concatenate([values[None] + regularization, vectors])

    def _quadratic(self, regularization: float) -> Array:
        inverse = self.inverse(regularization)
        found = np.empty(self.features.train.spec.num_samples)
        for rows in self.features.train.blocks():
            found[rows.index] = np.einsum("bk,bk->b", inverse.solve(rows.features), as_computed(rows.features))
        return found

    def _keep(self, name: str, key: Any, compute: Any) -> Array:
        return cached(self.features.cache, f"{name}-{self.weights}", self.features.train, [self.weights, key], compute)
