"""Lanczos quadrature: quadratic forms vᵀ f(G) v of a symmetric matrix G for any function f, without a decomposition of G.

Golub and Meurant 2010, chapter 6. Shapes: b vectors, s steps.
"""

import numpy as np
from scipy.linalg import eigh_tridiagonal, get_blas_funcs

from trak_lightning.scoring.base import Array


def quadrature(matrix: Array, vectors: Array, steps: int) -> tuple[Array, Array]:
    """Return nodes x (b, s) and weights c (b, s): ``Σ_j c_bj f(x_bj)`` is ``v_bᵀ f(matrix) v_b``.

    It is exact, up to rounding, if `steps` is at least the size of the matrix. Otherwise it is exact for polynomials f of
    degree up to 2s − 1.

    Args:
        matrix: the lower triangle (k, k).
        vectors: (k, b).
        steps: s.
    """
    # The transpose has the memory order that BLAS expects, so it is not copied; its triangle is the upper one.
    multiply = get_blas_funcs("symm", (matrix, vectors))
    norms = np.linalg.norm(vectors, axis=0)
    current, before = _divide(vectors, norms), np.zeros_like(vectors)
    diagonals, offsets = np.zeros((steps, len(norms))), np.zeros((steps, len(norms)))
    for step in range(steps):
        after = multiply(1.0, matrix.T, current) - (offsets[step - 1] * before if step else 0)
        diagonals[step] = (after * current).sum(0)
        after -= diagonals[step] * current
        offsets[step] = np.linalg.norm(after, axis=0)
        # Where nothing but rounding is left, the vectors so far span all that the matrix makes of the first one.
        offsets[step][offsets[step] <= 1e-6 * np.abs(diagonals).max(0)] = 0
        before, current = current, _divide(after, offsets[step])
    nodes, weights = np.empty((len(norms), steps)), np.empty((len(norms), steps))
    for b, norm in enumerate(norms):
        nodes[b], basis = eigh_tridiagonal(diagonals[:, b], offsets[:-1, b])
        weights[b] = norm**2 * basis[0] ** 2
    return nodes, weights


def _divide(columns: Array, norms: Array) -> Array:
    return np.divide(columns, norms, out=np.zeros_like(columns), where=norms > 0)
