"""The weighted Gram matrix ΦᵀWΦ, or its n × n counterpart where there are fewer samples than dimensions."""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from trak_lightning.scoring.base import Array, CheckpointFeatures, chunks
from trak_lightning.scoring.compute import PANEL
from trak_lightning.scoring.rows import as_computed, share, shared_blocks
from trak_lightning.stores.base import FeatureRows, FeatureSet

Weights: TypeAlias = Literal["none", "residual", "gauss_newton", "fisher"]
WEIGHTS = get_args(Weights)


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


def gram(features: CheckpointFeatures, weights: str) -> Array:
    """ΦᵀWΦ (k, k), or W^½ΦΦᵀW^½ (n, n) where n < k: its lower triangle; the upper one is zero.

    Products of one piece are in the precision of the features (at least float32), their sums in float64: the error is that
    of single-precision products of `PANEL` terms, relative ``2⁻²⁴·√PANEL``, however many samples there are. In the n × n form
    nothing is summed: an entry is one product, in its own precision. Each process does its share of the rows.
    """
    return _dual(features, weights) if is_dual(features.train) else _primal(features, weights)


class Piece(NamedTuple):
    """Consecutive training samples, c of them, `PANEL` at the most."""

    samples: slice
    features: Array
    """(c, k), in the precision of products."""
    root: Array
    """w^½, (c,). What is multiplied by W^½Φ is smaller than Φ: scaling that instead costs less."""


def pieces(features: FeatureSet, weights: str) -> Iterator[Piece]:
    """All training samples in order."""
    return _pieces(features.blocks(), weights)


def _pieces(blocks: Iterable[FeatureRows], weights: str) -> Iterator[Piece]:
    for block in blocks:
        for piece in chunks(len(block), 1, PANEL):
            rows = block[piece.start : piece.stop]
            stored = as_computed(rows.features)
            root = np.sqrt(weighting(rows, weights)).astype(stored.dtype)
            yield Piece(slice(int(rows.index[0]), int(rows.index[-1]) + 1), stored, root)


def _primal(features: CheckpointFeatures, weights: str) -> Array:
    squares = features.compute.squares(features.train.spec.dim)
    for piece in _pieces(shared_blocks(features), weights):
        squares.add(piece.features * piece.root[:, None])
    return features.compute.total(squares.result())


def _dual(features: CheckpointFeatures, weights: str) -> Array:
    n, mine = features.train.spec.num_samples, share(features)
    total = np.empty((0, 0))
    # As many rows as fit are held while the others stream past once; memory is n² numbers and these.
    for held in chunks(len(mine), 4 * features.train.spec.dim):
        first, last = mine.start + held.start, mine.start + held.stop
        panels = [
            (panel, features.compute.left(panel.features))
            for panel in _pieces([features.train.rows(first, last)], weights)
        ]
        if not total.size:
            total = np.zeros((n, n), panels[0][0].features.dtype)
        for samples, stored, root in _pieces(_upto(features.train, last), weights):
            for panel, left in panels:
                # The matrix is symmetric: what lies right of the diagonal blocks is not computed.
                stop = min(samples.stop, panel.samples.stop)
                if stop <= samples.start:
                    continue
                out = total[panel.samples, samples.start : stop]
                left(stored[: stop - samples.start], out)
                out *= panel.root[:, None]
                out *= root[: stop - samples.start]
                if stop > panel.samples.start:
                    out[:] = np.tril(out, panel.samples.start - samples.start)
    return features.compute.total(total)


def _upto(features: FeatureSet, stop: int) -> Iterator[FeatureRows]:
    """The blocks that hold the samples 0 … stop."""
    return features.blocks(range(-(-stop // features.spec.block_size)))
