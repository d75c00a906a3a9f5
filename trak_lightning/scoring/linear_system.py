"""ΦᵀWΦ + λI of one checkpoint: computed once and kept in the run directory."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import eigvalsh

from trak_lightning.errors import DataError, NonFiniteGradientError
from trak_lightning.run.formatting import format_percent
from trak_lightning.runtime.tracebacks import warn
from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.scoring.cache import cached
from trak_lightning.scoring.generalization_gap import predicted_gap
from trak_lightning.scoring.gram import diagonal, gram, is_dual, pieces, unit
from trak_lightning.scoring.inverse import (
    DualCholesky,
    Inverse,
    PrimalCholesky,
    PseudoInverse,
    Tridiagonal,
    cholesky_factor,
    condition_number,
    eigenvectors,
    largest_condition,
    warn_ill_conditioned,
)
from trak_lightning.scoring.rows import as_computed, shared_blocks

FAR = 1e3
"""How many times the features of 95 % of the samples those of an outlier are at least."""


class OutlierWarning(UserWarning):
    """ΦᵀWΦ, and thereby λ and all scores, hardly depends on more than a few training samples with huge features."""


class System:
    """The weighted Gram matrix of one checkpoint, and its inverses."""

    def __init__(self, features: CheckpointFeatures, weighting: str) -> None:
        self.features = features
        self.weighting = weighting

    @cached_property
    def trace(self) -> float:
        """trace(ΦᵀWΦ) = Σ_i w_i ‖φ_i‖², the unit in which λ is chosen."""
        return float(np.trace(self._gram, dtype=np.float64))

    @cached_property
    def unit(self) -> float:
        """See `gram.unit`."""
        return unit(self.features.train, self.weighting)

    def own_effects(self) -> Array:
        """Return what `predicted_gap` does: how scores predict the effect of training on a sample on itself, for any λ."""
        return self._keep("own-effects", None, lambda: predicted_gap(self.features, self._gram, self.weighting))

    def warn_of_outliers(self) -> bool:
        """Warn, and return True, if most of ΦᵀWΦ comes from a few samples whose features are `FAR` larger than nearly all others."""
        lower = self._gram
        norm = np.sqrt(max(2 * np.vdot(lower, lower) - np.square(np.diag(lower)).sum(), 0))
        if 2 * norm < self.trace:  # no sample is more than half of it: the features need not be read
            return False
        squares, weights = self._squares()
        outliers = np.flatnonzero(squares > FAR**2 * np.quantile(squares, 0.95))
        shares = weights * squares / max((weights * squares).sum(), np.finfo(np.float64).tiny)
        if (share := shares[outliers].sum()) <= 0.5:
            return False
        sizes = np.sqrt(squares)
        warn(
            f"{format_percent(share, 1)} of the trace of ΦᵀWΦ is that of training sample{'s' * (len(outliers) > 1)} {', '.join(map(str, outliers[:10]))}"
            f"{' …' * (len(outliers) > 10)}, so that all scores depend on it: features of norm {sizes[outliers].max():.3g}, where the median is "
            f"{np.median(sizes):.3g}. If a value in it is an outlier, correct it or leave the sample out of the dataset, and featurize in "
            "another run directory.",
            OutlierWarning,
        )
        return True

    def _squares(self) -> tuple[Array, Array]:
        """‖φ_i‖² and w_i of every training sample, (n,) each."""
        found = [
            (np.square(as_computed(rows.features), dtype=np.float64).sum(1), diagonal(rows, self.weighting))
            for rows in self.features.train.blocks()
        ]
        squares, weights = map(np.concatenate, zip(*found, strict=True))
        return squares, weights

    def inverse(self, regularization: float) -> Inverse:
        """Return (ΦᵀWΦ + λI)⁻¹: from a Cholesky factor for λ > 0; from eigenvectors of a matrix computed in float64 for λ = 0 or
        if there is no factor.

        Warns:
            IllConditionedWarning: the condition number exceeds `largest_condition`.
        """
        factor = self._keep("factor", regularization, lambda: self._factor(regularization))
        if factor.shape[0] == factor.shape[1]:
            if is_dual(self.features.gram_rows):
                return DualCholesky(factor, self.features.gram_rows, self.weighting, regularization)
            return PrimalCholesky(factor)
        values, vectors = factor[0], factor[1:]
        condition = float(values[-1]) / (regularization or float(values[0]))
        if regularization > 0 or condition > largest_condition(np.dtype(np.float64)):
            warn_ill_conditioned(condition, regularization, f"the pseudo-inverse of rank {len(values)} is used")
        return PseudoInverse(values, vectors)

    def quadratic(self, regularization: float) -> Array:
        """Return ``φ_iᵀ (ΦᵀWΦ + λI)⁻¹ φ_i`` for every training sample: (n,)."""
        return self._keep("quadratic", regularization, lambda: self._quadratic(regularization))

    def spectrum(self) -> Array:
        """Return the eigenvalues of ΦᵀWΦ that may differ from zero, ascending: (min(n, k),)."""
        return self._keep("spectrum", None, self._spectrum)

    def products(self, left: Array, right: Array, relative: Array) -> Array:
        """Return ``left (ΦᵀWΦ + λI)⁻¹ rightᵀ`` for rows (a, k) and (s, k) and many λ/trace > 0: (λ, a, s).

        One tridiagonal form of the matrix serves every λ; nothing is kept.
        """
        shifts, right = relative * self.trace, right.astype(np.float64)
        form = Tridiagonal(self._gram)
        if not is_dual(self.features.gram_rows):
            return form.solve(shifts, left) @ right.T
        # By Woodbury's identity, as in `DualCholesky`.
        inner = [np.empty((len(rows), len(self._gram))) for rows in (left, right)]
        for piece in pieces(self.features.gram_rows, self.weighting):
            for rows, out in zip((left, right), inner, strict=True):
                out[:, piece.samples] = (rows @ piece.features.T.astype(np.float64)) * piece.root
        return (left @ right.T - form.solve(shifts, inner[0]) @ inner[1].T) / shifts[:, None, None]

    @cached_property
    def _precision(self) -> np.dtype:
        """In which the products of the Gram matrix are computed."""
        return as_computed(self.features.train.rows(0, 1).features).dtype

    @cached_property
    def _gram(self) -> Array:
        found = self._keep("gram", None, self._finite_gram)
        if not found.any():
            raise DataError(
                f"ΦᵀWΦ is 0 with weights={self.weighting!r}: the gradients, or the weights W, of all training samples are 0. A loss "
                "that is linear in the output, such as that of task loss, has no curvature: use weights='residual'."
            )
        return found

    def _finite_gram(self) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            found = gram(self.features, self.weighting)
        if not np.isfinite(found).all():
            sizes = np.sqrt(self._squares()[0])
            raise NonFiniteGradientError(
                f"ΦᵀWΦ overflows: the features of training sample {sizes.argmax()} have norm {sizes.max():.3g}, and the median is "
                f"{np.median(sizes):.3g}. Correct the sample or leave it out of the dataset, and featurize in another run directory."
            )
        return found

    def _factor(self, regularization: float) -> Array:
        """Return C, square; or eigenvalues of ΦᵀWΦ + λI (first row) and eigenvectors (k rows): more rows than columns."""
        factor = cholesky_factor(self._gram, regularization) if regularization > 0 else None
        if factor is None:
            exact = gram(self.features, self.weighting, np.float64)
            values, vectors = eigenvectors(exact, self.features.gram_rows, self.weighting)
            return np.concatenate([values[None] + regularization, vectors])
        # No eigenvalue exceeds the trace, so the condition number needs to be estimated only for a tiny λ.
        limit = largest_condition(self._precision)
        if 1 + self.trace / regularization > limit:
            condition = condition_number(self._gram, factor)
            if condition > limit:
                warn_ill_conditioned(condition, regularization, "nothing was done about it")
        return factor

    def _spectrum(self) -> Array:
        found: Array = eigvalsh(self._gram.astype(np.float64), lower=True, overwrite_a=True, check_finite=False)
        return found

    def _quadratic(self, regularization: float) -> Array:
        inverse = self.inverse(regularization)
        found = np.zeros(self.features.train.spec.num_samples)
        for rows in shared_blocks(self.features):
            found[rows.index] = np.einsum("bk,bk->b", inverse.solve(rows.features), as_computed(rows.features))
        return self.features.backend.all_reduce(found)

    def _keep(self, name: str, key: Any, calculate: Callable[[], Array]) -> Array:
        return cached(self.features, f"{name}-{self.weighting}", [self.weighting, key], calculate)
