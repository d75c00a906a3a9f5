"""Eigendecomposition of the weighted Gram matrix: one for all λ."""

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trak_lightning.scoring.base import Array, weighting
from trak_lightning.stores.base import FeatureSet

ILL_CONDITIONED = 1e12


class IllConditionedWarning(UserWarning):
    """ΦᵀWΦ is numerically singular and λ does not make up for it."""


@dataclass(frozen=True)
class Spectrum:
    """G = ΦᵀWΦ = V diag(s) Vᵀ, without the directions in which G is zero.

    ``values`` s (r,) are positive; ``vectors`` V (k, r) orthonormal; r is the rank of G, at most min(n, k).
    """

    values: Array
    vectors: Array

    @cached_property
    def trace(self) -> float:
        """trace(G) = Σ_i w_i ‖φ_i‖², the unit in which λ is chosen."""
        return float(self.values.sum())

    @property
    def deficient(self) -> bool:
        """Whether G has directions in which it is zero."""
        return self.values.size < self.vectors.shape[0]

    def solve(self, features: Array, regularization: float) -> Array:
        """Φ (G + λI)⁻¹ of rows (b, k), in float64; with the pseudo-inverse of G where λ = 0."""
        features = features.astype(np.float64)
        coordinates = features @ self.vectors
        if regularization == 0:
            self._warn()
            return (coordinates / self.values) @ self.vectors.T
        if not self.deficient:
            return (coordinates / (self.values + regularization)) @ self.vectors.T
        # Outside the range of G the inverse is 1/λ; the difference to it is what V carries.
        shrinkage = self.values / (regularization * (self.values + regularization))
        return features / regularization - (coordinates * shrinkage) @ self.vectors.T

    def _warn(self) -> None:
        condition = float(self.values[-1] / self.values[0])
        if condition > ILL_CONDITIONED:
            warnings.warn(
                f"ΦᵀWΦ has condition number {condition:.1e} and λ = 0, so scores are dominated by rounding. Use "
                "regularization='auto'.",
                IllConditionedWarning,
                stacklevel=4,
            )


def gram_spectrum(features: FeatureSet, weights: str) -> Spectrum:
    """The spectrum of ΦᵀWΦ over all training samples.

    G is added up in float64, block by block, and decomposed once: k×k numbers in memory. With fewer samples than
    dimensions the n×n matrix W^½ΦΦᵀW^½ is decomposed instead, which has the same eigenvalues.

    Directions with an eigenvalue below ``max(n, k)·ε·s_max`` count as zero.
    """
    n, k = features.spec.num_samples, features.spec.dim
    if n < k:
        scaled = np.concatenate(
            [
                rows.features.astype(np.float64) * np.sqrt(weighting(rows, weights))[:, None]
                for rows in features.blocks()
            ]
        )
        values, left = np.linalg.eigh(scaled @ scaled.T)
        keep = values > _cutoff(values, n, k)
        return Spectrum(values[keep], scaled.T @ (left[:, keep] / np.sqrt(values[keep])))
    gram = np.zeros((k, k))
    for rows in features.blocks():
        block = rows.features.astype(np.float64)
        gram += (block * weighting(rows, weights)[:, None]).T @ block
    values, vectors = np.linalg.eigh(gram)
    keep = values > _cutoff(values, n, k)
    return Spectrum(values[keep], vectors[:, keep])


def _cutoff(values: Array, n: int, k: int) -> float:
    return float(max(n, k) * np.finfo(np.float64).eps * max(values[-1], np.finfo(np.float64).tiny))
