"""ΦᵀWΦ + λI of one checkpoint: computed once, kept in the run directory."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import eigvalsh

from trak_lightning.errors import DataError
from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.scoring.cache import cached
from trak_lightning.scoring.gram import gram, is_dual, pieces
from trak_lightning.scoring.inverse import (
    ILL_CONDITIONED,
    DualCholesky,
    Inverse,
    PrimalCholesky,
    PseudoInverse,
    Tridiagonal,
    cholesky_factor,
    condition_number,
    eigenvectors,
    warn_ill_conditioned,
)
from trak_lightning.scoring.rows import as_computed, shared_blocks


class System:
    """The weighted Gram matrix of one checkpoint, and its inverses."""

    def __init__(self, features: CheckpointFeatures, weights: str) -> None:
        self.features = features
        self.weights = weights

    @cached_property
    def trace(self) -> float:
        """trace(ΦᵀWΦ) = Σ_i w_i ‖φ_i‖², the unit in which λ is chosen."""
        return float(np.trace(self._gram, dtype=np.float64))

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
        return self._keep("spectrum", None, self._spectrum)

    def products(self, left: Array, right: Array, relative: Array) -> Array:
        """``left (ΦᵀWΦ + λI)⁻¹ rightᵀ`` of rows (a, k) and (s, k) for many λ/trace, all above zero: (λ, a, s).

        One tridiagonal form of the matrix serves every λ; nothing is kept.
        """
        shifts, right = relative * self.trace, right.astype(np.float64)
        form = Tridiagonal(self._gram)
        if not is_dual(self.features.train):
            return form.solve(shifts, left) @ right.T
        # By Woodbury's identity, as in `DualCholesky`.
        inner = [np.empty((len(rows), len(self._gram))) for rows in (left, right)]
        for piece in pieces(self.features.train, self.weights):
            for rows, out in zip((left, right), inner, strict=True):
                out[:, piece.samples] = (rows @ piece.features.T.astype(np.float64)) * piece.root
        return (left @ right.T - form.solve(shifts, inner[0]) @ inner[1].T) / shifts[:, None, None]

    @cached_property
    def _gram(self) -> Array:
        found = self._keep("gram", None, lambda: gram(self.features, self.weights))
        if not found.any():
            raise DataError(
                f"ΦᵀWΦ is 0 with weights {self.weights!r}: all gradients, or all weights, of the training samples are 0. A loss "
                "that is linear in the output, such as that of task loss, has no curvature: use weights 'residual'."
            )
        return found

    def _factor(self, regularization: float) -> Array:
        """C, square; or eigenvalues of ΦᵀWΦ + λI (first row) over eigenvectors (k rows), one more row than columns."""
        if regularization > 0:
            factor = cholesky_factor(self._gram, regularization)
            if factor is not None:
                # No eigenvalue exceeds the trace, so that there is nothing to estimate for any λ that is not tiny.
                if 1 + self.trace / regularization > ILL_CONDITIONED:
                    condition = condition_number(self._gram, factor)
                    if condition > ILL_CONDITIONED:
                        warn_ill_conditioned(condition, regularization, "nothing was done about it")
                return factor
        values, vectors = eigenvectors(self._gram, self.features.train, self.weights)
        return np.concatenate([values[None] + regularization, vectors])

    def _spectrum(self) -> Array:
        found: Array = eigvalsh(self._gram.astype(np.float64), lower=True, overwrite_a=True, check_finite=False)
        return found

    def _quadratic(self, regularization: float) -> Array:
        inverse = self.inverse(regularization)
        found = np.zeros(self.features.train.spec.num_samples)
        for rows in shared_blocks(self.features):
            found[rows.index] = np.einsum("bk,bk->b", inverse.solve(rows.features), as_computed(rows.features))
        return self.features.compute.total(found)

    def _keep(self, name: str, key: Any, calculate: Callable[[], Array]) -> Array:
        return cached(self.features, f"{name}-{self.weights}", [self.weights, key], calculate)
