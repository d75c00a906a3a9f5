"""The weighted Gram matrix ΦᵀWΦ, or its n × n counterpart if there are fewer samples than dimensions."""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from trak_lightning.scoring.backend import PANEL
from trak_lightning.scoring.base import Array, CheckpointFeatures, chunks
from trak_lightning.scoring.rows import as_computed, share, shared_blocks
from trak_lightning.stores.base import FeatureRows, FeatureSet

Weighting: TypeAlias = Literal["none", "residual", "gauss_newton", "fisher"]
"""The name of a Gram weighting W; users write it as ``weights``."""
WEIGHTINGS = get_args(Weighting)


def diagonal(rows: FeatureRows, weighting: str) -> Array:
    """Return the diagonal of the Gram weighting W for some rows, float64 (b,)."""
    return weights_of(rows.loss_weight, rows.curvature, weighting)


def weights_of(loss_weight: Array, curvature: Array, weighting: str) -> Array:
    """Return the weights w of samples whose q and r these are, float64 (b,)."""
    if weighting == "none":
        return np.ones(len(loss_weight))
    if weighting == "residual":
        return np.abs(loss_weight.astype(np.float64))
    if weighting == "fisher":
        return loss_weight.astype(np.float64) ** 2
    return curvature.astype(np.float64)


def unit(features: FeatureSet, weighting: str) -> float:
    """Return by what (ΦᵀWΦ + λI)⁻¹ is multiplied to have the scale of (ΦᵀRΦ)⁻¹, so that scores have the unit of f.

    That is mean(w) for the squared loss, whose q has the unit of the labels, and whose r is 1. For other losses it is 1: q of a
    log-odds has no unit.
    """
    curvature = features.column("curvature")
    if not is_squared(curvature):
        return 1.0
    return float(weights_of(features.column("loss_weight"), curvature, weighting).mean()) or 1.0


def is_squared(curvature: Array) -> bool:
    """Whether these are the curvatures r of a squared loss."""
    return bool((curvature == 1).all())


def is_dual(features: FeatureSet) -> bool:
    """Return whether the n × n matrix is the smaller one, for features of n rows."""
    return features.spec.num_samples < features.spec.dim


def gram(features: CheckpointFeatures, weighting: str, precision: npt.DTypeLike | None = None) -> Array:
    """Compute ΦᵀWΦ (k, k), or W^½ΦΦᵀW^½ (n, n) if n < k: the lower triangle, with zeros above it.

    The product of one piece is in `precision`, that of the features (at least float32) if None, and the sum over pieces in
    float64. In the n × n form nothing is summed: an entry is one product. Each process computes its share of the rows.
    """
    return (_dual if is_dual(features.gram_rows) else _primal)(features, weighting, precision)


def rounding(features: FeatureSet) -> float:
    """Return how large rounding may make an eigenvalue of ΦᵀWΦ, computed in float64, that is zero, relative to the trace.

    Features of unit roundoff u were computed with relative errors of a few u, taken to be 4: they add errors of (4u)². A product of c
    terms in float64 has a relative error of about √c·2⁻⁵³, since roundings are as good as random, and 4 times as much is allowed; c is
    at most `PANEL` in the k × k form, and k in the n × n form.
    """
    terms = features.spec.dim if is_dual(features) else min(features.spec.num_samples, PANEL)
    stored = features.rows(0, 1).features.dtype
    return max((4 * float(np.finfo(stored).eps) / 2) ** 2, 4 * float(np.sqrt(terms)) * 2.0**-53)


class Piece(NamedTuple):
    """Consecutive rows, c of them, at most `PANEL`."""

    samples: slice
    features: Array
    """(c, k), in the precision in which products are computed."""
    root: Array
    """w^½, (c,). Kept apart from the features because scaling the products, which are smaller, costs less."""


def pieces(features: FeatureSet, weighting: str) -> Iterator[Piece]:
    """Yield all rows in order."""
    return _pieces(features.blocks(), weighting, None)


def _pieces(blocks: Iterable[FeatureRows], weighting: str, precision: npt.DTypeLike | None) -> Iterator[Piece]:
    for block in blocks:
        for piece in chunks(len(block), 1, PANEL):
            rows = block[piece.start : piece.stop]
            stored = as_computed(rows.features) if precision is None else rows.features.astype(precision)
            root = np.sqrt(diagonal(rows, weighting)).astype(stored.dtype)
            yield Piece(slice(int(rows.index[0]), int(rows.index[-1]) + 1), stored, root)


def _primal(features: CheckpointFeatures, weighting: str, precision: npt.DTypeLike | None) -> Array:
    squares = features.backend.gram_sum(features.train.spec.dim)
    for piece in _pieces(shared_blocks(features, features.gram_rows), weighting, precision):
        squares.add(piece.features * piece.root[:, None])
    return features.backend.all_reduce(squares.result())


def _dual(features: CheckpointFeatures, weighting: str, precision: npt.DTypeLike | None) -> Array:
    source = features.gram_rows
    n, mine = source.spec.num_samples, share(features, source)
    total = np.empty((0, 0))
    # As many rows as fit are held while all others stream past once. Memory: n² numbers and the held rows.
    for held in chunks(len(mine), 4 * source.spec.dim):
        first, last = mine.start + held.start, mine.start + held.stop
        panels = [
            (panel, features.backend.left_factor(panel.features))
            for panel in _pieces([source.rows(first, last)], weighting, precision)
        ]
        if not total.size:
            total = np.zeros((n, n), panels[0][0].features.dtype)
        for samples, stored, root in _pieces(_upto(source, last), weighting, precision):
            for panel, left in panels:
                # The matrix is symmetric: entries to the right of the diagonal blocks are not computed.
                stop = min(samples.stop, panel.samples.stop)
                if stop <= samples.start:
                    continue
                out = total[panel.samples, samples.start : stop]
                left(stored[: stop - samples.start], out)
                out *= panel.root[:, None]
                out *= root[: stop - samples.start]
                if stop > panel.samples.start:
                    out[:] = np.tril(out, panel.samples.start - samples.start)
    return features.backend.all_reduce(total)


def _upto(features: FeatureSet, stop: int) -> Iterator[FeatureRows]:
    """The blocks that hold the samples 0 … stop."""
    return features.blocks(range(-(-stop // features.spec.block_size)))
