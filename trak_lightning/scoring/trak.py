"""TRAK scores."""

from collections.abc import Sequence

import numpy as np

from trak_lightning.errors import SettingsError
from trak_lightning.scoring.base import (
    WEIGHTS,
    Array,
    CheckpointFeatures,
    Problem,
    Scorer,
    Scoring,
    Weights,
    read_rows,
    weighting,
)
from trak_lightning.scoring.regularization import choose, parse
from trak_lightning.scoring.spectrum import Spectrum, gram_spectrum


class Trak(Scorer):
    """TRAK: one Newton step on the linearised model, averaged over checkpoints.

    ``τ(z)_i = ( (1/M) Σ_m φ_m(z)ᵀ (Φ_mᵀ W_m Φ_m + λ_m I)⁻¹ φ_m(z_i) ) · ( (1/M) Σ_m q_m,i )``: both factors are averaged
    separately (Park et al. 2023, section 3.3, where W = I and λ = 0).

    Args:
        regularization: λ as a number, the same for every checkpoint; ``auto`` for
            trace(ΦᵀWΦ)/1500; ``calibrate`` to choose it by the linear datamodeling score over the checkpoints themselves, which needs
            recorded subsets.
        weights: W, of every training sample: ``none`` 1, ``residual`` \\|q|, ``gauss_newton`` r = ∂²ℓ/∂f²
            (q(1 − q) for the logistic loss), ``fisher`` q².
    """

    def __init__(self, regularization: float | str = "auto", weights: Weights = "residual") -> None:
        if weights not in WEIGHTS:
            raise SettingsError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
        self.regularization = parse(regularization)
        self.weights = weights

    def fit(self, checkpoints: Sequence[CheckpointFeatures]) -> Scoring:
        problem = Problem(tuple(checkpoints))
        spectra = [gram_spectrum(features.train, self.weights) for features in checkpoints]
        choice = choose(self.regularization, problem, spectra)
        scoring = _TrakScoring(problem, spectra, choice.values, self._factor(problem, spectra, choice.values))
        scoring.settings = choice.settings
        return scoring

    def _factor(self, problem: Problem, spectra: list[Spectrum], regularizations: Sequence[float]) -> Array:
        """What the averaged inner products are multiplied by, for every training sample: (n,)."""
        return problem.loss_weight


class LeaveOneOut(Trak):
    """TRAK with the correction for leverage: the exact effect of one Newton step without the sample.

    ``τ(z)_i / (1 − h_i)`` with ``h_i = r_i φ_iᵀ (ΦᵀWΦ + λI)⁻¹ φ_i``, averaged over checkpoints. With
    ``weights="gauss_newton"`` and one checkpoint this is f(z; θ) − f(z; θ₋ᵢ), where θ₋ᵢ is one Newton step from θ on the
    loss without sample i (Park et al. 2023, equation 5; Pregibon 1981).

    Args:
        regularization: as for `Trak`.
        weights: as for `Trak`.
    """

    def __init__(self, regularization: float | str = "auto", weights: Weights = "gauss_newton") -> None:
        super().__init__(regularization, weights)

    def _factor(self, problem: Problem, spectra: list[Spectrum], regularizations: Sequence[float]) -> Array:
        remaining = np.zeros_like(problem.loss_weight)
        for features, spectrum, value in zip(problem.checkpoints, spectra, regularizations, strict=True):
            for rows in features.train.blocks():
                solved = spectrum.solve(rows.features, value)
                leverage = weighting(rows, self.weights) * (solved * rows.features).sum(1)
                # A sample that is the only one in its direction has leverage 1 up to rounding.
                remaining[rows.index] += 1 - np.minimum(leverage, 1 - 1e-6)
        return problem.loss_weight / (remaining / len(spectra))


class _TrakScoring(Scoring):
    def __init__(
        self, problem: Problem, spectra: list[Spectrum], regularizations: Sequence[float], factor: Array
    ) -> None:
        super().__init__(problem.checkpoints)
        self._problem = problem
        self._spectra = spectra
        self._regularizations = regularizations
        self._factor = factor

    def rows(self, start: int, stop: int) -> Array:
        parts = zip(self._problem.checkpoints, self._spectra, self._regularizations, strict=True)
        solved = [
            (features, spectrum.solve(read_rows(features.targets, start, stop), value))
            for features, spectrum, value in parts
        ]
        return mean_inner_products(solved, stop - start, self.num_train) * self._factor


def mean_inner_products(left: Sequence[tuple[CheckpointFeatures, Array]], b: int, n: int) -> Array:
    """``(1/M) Σ_m L_m Φ_mᵀ`` for rows L_m (b, k): (b, n), reading the training features block by block.

    Products are in the dtype of the stored features, sums over checkpoints in float64.
    """
    total = np.zeros((b, n))
    for features, rows in left:
        for block in features.train.blocks():
            stored = block.features
            total[:, block.index[0] : block.index[-1] + 1] += rows.astype(stored.dtype) @ stored.T
    return total / len(left)
