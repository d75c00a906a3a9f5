"""The few directions of feature space that decide about scores. Pure functions of arrays."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, eigh, qr, solve_triangular

Array = npt.NDArray[Any]

RIDGE = 1e-9
"""Added to the second moment of targets, relative to its trace: less than the rounding of features in float32."""


class Directions(NamedTuple):
    """Maps with ``x·u ≈ (x rows)·(u targets)``, each (k, r)."""

    rows: Array
    targets: Array


def directions(rows: Array, targets: Array, share: float) -> Directions:
    """Return the directions that hold a `share` of the variance of the products ``x·u``.

    With ``UᵀU/s = LLᵀ``, products are ``(xL)·(uL⁻ᵀ)``, and all coordinates of uL⁻ᵀ have variance 1. The best r directions are
    then the leading eigenvectors of the second moment of xL: no other r have a smaller mean square of what is left out. An
    eigenvalue below ``(1 − share)/k`` of their sum is not among them. They are scaled so that the first coordinate of rows has
    variance 1.

    Args:
        rows: x, (s, k).
        targets: u, (s, k), distributed as those of which the products will be asked.
        share: between 0 and 1.
    """
    s, k = rows.shape
    if s < k:  # what targets have outside the span of the rows does not count
        basis = qr(rows.T, mode="economic")[0]
        found = directions(rows @ basis, targets @ basis, share)
        return Directions(basis @ found.rows, basis @ found.targets)
    moment = targets.T @ targets / s
    moment[np.diag_indices_from(moment)] += RIDGE * (np.trace(moment) or 1.0)
    root = cholesky(moment, lower=True, overwrite_a=True)
    projected = rows @ root
    moment = projected.T @ projected / s
    total = np.trace(moment)
    variances, axes = eigh(moment, overwrite_a=True, subset_by_value=[(1 - share) * total / len(root), np.inf])
    if not len(variances):  # all products are 0
        variances, axes = np.ones(1), np.eye(len(root), 1)
    variances, axes = variances[::-1], axes[:, ::-1]
    count = min(int(np.searchsorted(np.cumsum(variances), share * total)) + 1, len(variances))
    scale = np.sqrt(variances[0])
    outward = root @ axes[:, :count]
    inward = solve_triangular(root, axes[:, :count], lower=True, trans="T")
    return Directions(outward / scale, inward * scale)


def joint_directions(terms: Iterable[tuple[Array, Array]], share: float) -> list[Directions]:
    """Return maps with ``Σ_m x_m·u_m ≈ (Σ_m x_m rows_m)·(Σ_m u_m targets_m)``, one pair, (k, r) each, for every term.

    Each term is reduced by itself first, and then all together: what the checkpoints of a run agree on needs few directions.

    Args:
        terms: (x_m, u_m), (s, k) each; one is held at a time.
        share: between 0 and 1.
    """
    each, reduced = [], []
    for rows, targets in terms:
        found = directions(rows, targets, share)
        each.append(found)
        reduced.append((rows @ found.rows, targets @ found.targets))
    if len(each) == 1:
        return each
    together = [np.concatenate(side, axis=1) for side in zip(*reduced, strict=True)]
    joint = directions(together[0], together[1], share)
    ends = np.cumsum([found.rows.shape[1] for found in each])[:-1]
    parts = zip(each, np.split(joint.rows, ends), np.split(joint.targets, ends), strict=True)
    return [Directions(found.rows @ rows, found.targets @ targets) for found, rows, targets in parts]
