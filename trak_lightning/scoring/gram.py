"""The weighted Gram matrix ΦᵀWΦ, or its n × n counterpart where there are fewer samples than dimensions."""

from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

import numpy as np

from trak_lightning.scoring.base import Array, chunks
from trak_lightning.scoring.inner_products import AlignedReader, as_computed
from trak_lightning.stores.base import FeatureRows, FeatureSet

Weights: TypeAlias = Literal["none", "residual", "gauss_newton", "fisher"]
WEIGHTS = get_args(Weights)

PANEL = 1024
"""Columns of the Gram matrix that are added to at a time."""


def weighting(rows: FeatureRows, weights: str) -> Array:
    """W of the Gram matrix ΦᵀWΦ, one weight a row, float64 (b,)."""
    if weights == "none":
        return np.ones(len(rows))
    if weights == "residual":
        return np.abs(rows.loss_weight.astype(np.float64))
    if weights == "fisher":
        return rows.loss_weight.astype(np.float64) ** 2
    return rows.curvature.astype(np.float64)


def is_dual(features: FeatureSet) -> bool:
    """Whether the n × n matrix is the smaller one."""
    return features.spec.num_samples < features.spec.dim


def gram(features: FeatureSet, weights: str) -> Array:
    """ΦᵀWΦ (k, k), or W^½ΦΦᵀW^½ (n, n) where n < k, in float64: its lower triangle; the upper one is zero.

    Products of one piece are in the precision of the features (at least float32), their sums in float64: the error is that
    of single-precision products of `PANEL` terms, relative ``2⁻²⁴·√PANEL``, however many samples there are.
    """
    return _dual(features, weights) if is_dual(features) else _primal(features, weights)


def scaled_pieces(features: FeatureSet, weights: str) -> Iterator[tuple[range, Array]]:
    """W^½Φ in order, at most `PANEL` rows at a time, with the range of samples they are of."""
    for block in features.blocks():
        for piece in chunks(len(block), 1, PANEL):
            part = slice(piece.start, piece.stop)
            rows = FeatureRows(
                block.index[part],
                block.features[part],
                block.output[part],
                block.loss_weight[part],
                block.curvature[part],
            )
            stored = as_computed(rows.features)
            scale = np.sqrt(weighting(rows, weights)).astype(stored.dtype)
            yield range(int(rows.index[0]), int(rows.index[-1]) + 1), stored * scale[:, None]


def _primal(features: FeatureSet, weights: str) -> Array:
    k = features.spec.dim
    total = np.zeros((k, k))
    for _, scaled in scaled_pieces(features, weights):
        for first in range(0, k, PANEL):
            last = min(first + PANEL, k)
            # The matrix is symmetric: what lies above the diagonal blocks is not computed.
            total[first:last, :last] += scaled[:, first:last].T @ scaled[:, :last]
    return np.tril(total)


def _dual(features: FeatureSet, weights: str) -> Array:
    n = features.spec.num_samples
    total = np.zeros((n, n))
    # As many rows as fit are held while the others stream past once; memory is n² numbers and one such panel.
    for held in chunks(n, 4 * features.spec.dim):
        panel = np.concatenate([_scaled(rows, weights) for rows in AlignedReader(features).read(held.start, held.stop)])
        for rows in _read_upto(features, held.stop):
            columns = slice(int(rows.index[0]), int(rows.index[-1]) + 1)
            total[held.start : held.stop, columns] = panel @ _scaled(rows, weights).T
    return np.tril(total)


def _read_upto(features: FeatureSet, stop: int) -> Iterator[FeatureRows]:
    return AlignedReader(features).read(0, stop)


def _scaled(rows: FeatureRows, weights: str) -> Array:
    stored = as_computed(rows.features)
    return stored * np.sqrt(weighting(rows, weights)).astype(stored.dtype)[:, None]
