"""Gradient dot products: the simplest baseline, and TracIn for one checkpoint."""

from collections.abc import Sequence

from trak_lightning.scoring.base import Array, CheckpointFeatures, Problem, Scorer, Scoring, read_rows
from trak_lightning.scoring.trak import mean_inner_products


class GradientDot(Scorer):
    """``τ(z)_i = ( (1/M) Σ_m φ_m(z)·φ_m(z_i) ) · ( (1/M) Σ_m q_m,i )``: TRAK without the Gram matrix.

    The inner product of the gradients of the target's output and of the training sample's loss (Pruthi et al. 2020).
    """

    def fit(self, checkpoints: Sequence[CheckpointFeatures]) -> Scoring:
        return _DotScoring(Problem(tuple(checkpoints)))


class _DotScoring(Scoring):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.checkpoints)
        self._problem = problem

    def rows(self, start: int, stop: int) -> Array:
        left = [(features, read_rows(features.targets, start, stop)) for features in self._problem.checkpoints]
        return mean_inner_products(left, stop - start, self.num_train) * self._problem.loss_weight
