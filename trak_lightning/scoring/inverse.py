"""(ΦᵀWΦ + λI)⁻¹ applied to features."""

from abc import ABC, abstractmethod

import numpy as np
from scipy.linalg import cho_solve, cholesky, eigh, lapack, solveh_banded

from trak_lightning.runtime.tracebacks import warn
from trak_lightning.scoring.base import Array
from trak_lightning.scoring.gram import is_dual, pieces, rounding
from trak_lightning.scoring.rows import as_computed
from trak_lightning.stores.base import FeatureSet


class IllConditionedWarning(UserWarning):
    """ΦᵀWΦ is singular up to rounding, and λ is too small to make up for it."""


def largest_condition(precision: np.dtype) -> float:
    """Return the condition number of ΦᵀWΦ + λI above which rounding dominates scores, for a matrix computed in `precision`.

    In float32, 1/ε = 8.4·10⁶: its smallest eigenvalues are then below the error of a single rounding of the largest ones.
    In float64, 10¹².
    """
    return 1e12 if precision == np.float64 else 1 / float(np.finfo(np.float32).eps)


class Inverse(ABC):
    """(ΦᵀWΦ + λI)⁻¹, or the pseudo-inverse if λ = 0."""

    @abstractmethod
    def solve(self, features: Array) -> Array:
        """Return x (ΦᵀWΦ + λI)⁻¹ for rows x (b, k), in float64."""


class PrimalCholesky(Inverse):
    """From the Cholesky factor C (k, k), lower: CCᵀ = ΦᵀWΦ + λI."""

    def __init__(self, factor: Array) -> None:
        self._factor = factor

    def solve(self, features: Array) -> Array:
        return _solve(self._factor, features.astype(np.float64))


class DualCholesky(Inverse):
    """From the Cholesky factor C (n, n), lower: CCᵀ = W^½ΦΦᵀW^½ + λI.

    By Woodbury's identity ``x (ΦᵀWΦ + λI)⁻¹ = ( x − x ΦᵀW^½ (W^½ΦΦᵀW^½ + λI)⁻¹ W^½Φ ) / λ``. Each call reads the
    features twice. Products with them are in their precision, as in the Gram matrix, and so is the error: trace/λ·2⁻²⁴.
    """

    def __init__(self, factor: Array, features: FeatureSet, weighting: str, regularization: float) -> None:
        self._factor = factor
        self._features = features
        self._weighting = weighting
        self._regularization = regularization

    def solve(self, features: Array) -> Array:
        rows = as_computed(features)
        products = np.empty((len(rows), len(self._factor)))
        for piece in pieces(self._features, self._weighting):
            products[:, piece.samples] = (rows @ piece.features.T) * piece.root
        inner = _solve(self._factor, products).astype(rows.dtype, copy=False)
        solved = rows.astype(np.float64)
        for piece in pieces(self._features, self._weighting):
            solved -= (inner[:, piece.samples] * piece.root) @ piece.features
        solved /= self._regularization
        return solved


class PseudoInverse(Inverse):
    """V diag(1/s) Vᵀ for orthonormal V (k, r) and the nonzero eigenvalues s (r,) of ΦᵀWΦ."""

    def __init__(self, values: Array, vectors: Array) -> None:
        self._values = values
        self._vectors = vectors

    def solve(self, features: Array) -> Array:
        return ((features.astype(np.float64) @ self._vectors) / self._values) @ self._vectors.T


class Tridiagonal:
    """A symmetric matrix as QTQᵀ with T tridiagonal: solves with many shifts at the cost of about four Cholesky factors.

    Args:
        matrix: the lower triangle (k, k).
    """

    def __init__(self, matrix: Array) -> None:
        k = len(matrix)
        self._reflectors, self._diagonal, self._beside, self._scales, info = lapack.dsytrd(
            matrix, lower=1, lwork=64 * k
        )
        assert info == 0

    def solve(self, shifts: Array, rows: Array) -> Array:
        """Return ``x (matrix + s·I)⁻¹`` for rows x (a, k) and each shift s > 0: (shifts, a, k)."""
        rotated = self._rotate(rows.astype(np.float64).T, "T")
        solved = np.empty((len(shifts), *rotated.shape))
        for shift, out in zip(shifts, solved, strict=True):
            diagonal = self._diagonal + shift
            if len(diagonal) == 1:  # SciPy rejects a 1 × 1 band matrix
                out[:] = rotated / diagonal
            else:
                out[:] = solveh_banded([diagonal, np.append(self._beside, 0)], rotated, lower=True, check_finite=False)
        a = len(rows)
        found = self._rotate(solved.transpose(1, 0, 2).reshape(len(rotated), -1), "N")
        return found.T.reshape(len(shifts), a, -1)

    def _rotate(self, columns: Array, trans: str) -> Array:
        """Multiply columns (k, c) by Qᵀ or Q: reflections of all rows but the first."""
        if len(columns) < 2:
            return columns
        reflectors, rest = np.asfortranarray(self._reflectors[1:, :-1]), np.asfortranarray(columns[1:])
        rotated, _, info = lapack.dormqr("L", trans, reflectors, self._scales, rest, 64 * columns.shape[1])
        assert info == 0
        return np.concatenate([columns[:1], rotated])


def cholesky_factor(matrix: Array, regularization: float) -> Array | None:
    """Return C (lower) with CCᵀ = matrix + λI, from the lower triangle of `matrix`; None if not positive definite."""
    shifted = np.array(matrix, np.float64)
    shifted[np.diag_indices_from(shifted)] += regularization
    try:
        # The transpose has the memory order that LAPACK expects, so it is not copied.
        upper: Array = cholesky(shifted.T, lower=False, overwrite_a=True, check_finite=False)
    except np.linalg.LinAlgError:
        return None
    return upper.T


def _solve(factor: Array, rows: Array) -> Array:
    """Return ``rows (CCᵀ)⁻¹`` for rows (b, k) in float64, which are overwritten."""
    solved: Array = cho_solve((factor.T, False), rows.T, overwrite_b=True, check_finite=False).T
    return solved


def eigenvectors(matrix: Array, features: FeatureSet, weighting: str) -> tuple[Array, Array]:
    """Return the eigenvalues s (r,) of ΦᵀWΦ that are not zero, ascending, with eigenvectors V (k, r).

    An eigenvalue counts as zero if it is no larger than what rounding makes of a zero: `rounding` times the trace, and
    ``max(n, k)·ε·s_max`` for the decomposition.

    Args:
        matrix: what `gram` returned, in float64.
        features: the training samples.
        weighting: of the Gram matrix.
    """
    trace = float(np.trace(matrix, dtype=np.float64))
    values, vectors = eigh(matrix, lower=True, check_finite=False)
    n, k = features.spec.num_samples, features.spec.dim
    decomposition = max(n, k) * np.finfo(np.float64).eps * max(values[-1], np.finfo(np.float64).tiny)
    keep = values > max(rounding(features) * trace, float(decomposition))
    values, vectors = values[keep], vectors[:, keep]
    if not is_dual(features):
        return values, vectors
    lifted = np.zeros((k, len(values)))
    for piece in pieces(features, weighting):
        lifted += piece.features.astype(np.float64).T @ (vectors[piece.samples] * piece.root[:, None])
    return values, lifted / np.sqrt(values)


def condition_number(matrix: Array, factor: Array) -> float:
    """Estimate the condition number of CCᵀ in the 1-norm (LAPACK pocon), in O(k²)."""
    symmetric_norm = float((np.abs(matrix).sum(0) + np.abs(np.tril(matrix, -1)).sum(1)).max())
    reciprocal, info = lapack.dpocon(factor, symmetric_norm, uplo="L")
    return 1 / max(float(reciprocal), np.finfo(np.float64).tiny) if info == 0 else float("inf")


def warn_ill_conditioned(condition: float, regularization: float, done: str) -> None:
    warn(
        f"ΦᵀWΦ + λI has condition number {condition:.1e} with λ = {regularization:.3g}, so that rounding dominates the scores; "
        f"{done}. Use regularization='auto'.",
        IllConditionedWarning,
    )
