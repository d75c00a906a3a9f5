"""TRAK scores."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from trak_lightning.errors import require_option
from trak_lightning.scoring.base import Array, CheckpointFeatures, Scorer, Scoring, require_compatible
from trak_lightning.scoring.gram import Weighting, diagonal
from trak_lightning.scoring.inner_products import Average, InnerProducts, Part, loss_weight
from trak_lightning.scoring.linear_system import System
from trak_lightning.scoring.regularization import WEIGHTING_CHOICES, choose, parse, rules
from trak_lightning.scoring.thresholding import SoftThreshold, parse_threshold
from trak_lightning.scoring.views import unit_norm
from trak_lightning.stores.base import FeatureRows

Normalize: TypeAlias = Literal["none", "unit", "self_influence"]


class Trak(Scorer):
    """TRAK: one Newton step on the linearized model, averaged over checkpoints.

    ``τ(z)_i = ( (1/M) Σ_m φ_m(z)ᵀ (Φ_mᵀ W_m Φ_m + λ_m I)⁻¹ φ_m(z_i) ) · ( (1/M) Σ_m q_m,i )``: both factors are averaged
    separately. For the squared loss, the first is multiplied by the mean of W_m, so that scores have the unit of f. The paper's estimator (Park et al. 2023, section 3.3) is ``Trak(regularization=0, weights="none")``.

    Args:
        regularization: λ as a number, the same for every checkpoint; ``trace/N`` for trace(ΦᵀWΦ)/N; ``auto`` for the rule
            on page regularization of the documentation; ``calibrate`` to choose λ, and the weighting, by the linear datamodeling score over
            the checkpoints themselves, which needs recorded subsets.
        weights: the Gram weighting W, for every training sample: ``none`` 1, ``residual`` abs(q), ``gauss_newton`` r = ∂²ℓ/∂f²
            (q(1 − q) for the logistic loss), ``fisher`` q²; ``auto`` for ``residual``, for the squared loss ``gauss_newton``, or for what
            ``calibrate`` finds.
        average: ``factors`` as above; ``scores`` averages the scores of the checkpoints, each with its own q.
        normalize: ``unit`` scales all features to length 1; ``self_influence`` divides each q_m,i by
            √(φ_iᵀ (ΦᵀWΦ + λI)⁻¹ φ_i), so that samples that move every output stand out less (Barshan et al. 2020).
        threshold: t of the soft threshold S(τ; t) = sign(τ)·max(abs(τ) − t, 0) of the scores (Park et al. 2023, section
            3.2, step 5); 0 for none.
    """

    def __init__(
        self,
        regularization: float | str = "auto",
        weights: Weighting | Literal["auto"] = "auto",
        average: Average = "factors",
        normalize: Normalize = "none",
        threshold: float | str = 0.0,
    ) -> None:
        self.regularization = parse(regularization)
        self.weights = require_option("weights", weights, WEIGHTING_CHOICES)
        self.average = require_option("average", average, get_args(Average))
        self.normalize = require_option("normalize", normalize, get_args(Normalize))
        self.threshold = parse_threshold(threshold)

    def fit(self, checkpoints: Sequence[CheckpointFeatures]) -> Scoring:
        require_compatible(checkpoints)
        if self.normalize == "unit":
            checkpoints = [unit_norm(features) for features in checkpoints]
        chosen = choose(self.regularization, self.weights, checkpoints)
        parts = [
            Part(_solve(system, value), self._normalized(system, value))
            for system, value in zip(chosen.systems, chosen.values, strict=True)
        ]
        scoring = InnerProducts(checkpoints, parts, self.average)
        scoring.settings = chosen.settings
        return SoftThreshold(scoring, self.threshold) if self.threshold else scoring

    def rules(self, checkpoints: Sequence[CheckpointFeatures]) -> dict[str, Any]:
        return rules(self.regularization, self.weights)

    def _coefficient(self, system: System, regularization: float) -> Callable[[FeatureRows], Array]:
        """Return the factor of inner products with training samples."""
        return loss_weight

    def _normalized(self, system: System, regularization: float) -> Callable[[FeatureRows], Array]:
        coefficient = self._coefficient(system, regularization)
        if self.normalize != "self_influence":
            return coefficient
        quadratic = system.quadratic(regularization)
        smallest = np.finfo(np.float64).tiny
        return lambda rows: coefficient(rows) / np.sqrt(np.maximum(quadratic[rows.index], smallest))


def _solve(system: System, regularization: float) -> Callable[[Array], Array]:
    solve, unit = system.inverse(regularization).solve, system.unit
    return solve if unit == 1 else lambda rows: unit * solve(rows)


class LeaveOneOut(Trak):
    """TRAK with the correction for leverage: the exact effect of one Newton step without the sample.

    ``τ(z)_i / (1 − h_i)`` with ``h_i = w_i φ_iᵀ (ΦᵀWΦ + λI)⁻¹ φ_i``, each checkpoint's own. With ``weights="gauss_newton"``
    and one checkpoint this is f(z; θ) − f(z; θ₋ᵢ), where θ₋ᵢ is one Newton step from θ on the loss without sample i
    (Park et al. 2023, equation 5; Pregibon 1981). Options are those of `Trak`.
    """

    def __init__(
        self,
        regularization: float | str = "auto",
        weights: Weighting | Literal["auto"] = "gauss_newton",
        average: Average = "factors",
        normalize: Normalize = "none",
        threshold: float | str = 0.0,
    ) -> None:
        super().__init__(regularization, weights, average, normalize, threshold)

    def _coefficient(self, system: System, regularization: float) -> Callable[[FeatureRows], Array]:
        quadratic = system.quadratic(regularization)

        def coefficient(rows: FeatureRows) -> Array:
            leverage = diagonal(rows, system.weighting) * quadratic[rows.index]
            # A sample that is alone in its direction has leverage 1 up to rounding.
            corrected: Array = rows.loss_weight / (1 - np.minimum(leverage, 1 - 1e-6))
            return corrected

        return coefficient


class Influence(Trak):
    """Influence functions on projected gradients: ``τ(z)_i = (1/M) Σ_m φ_m(z)ᵀ (Φ_mᵀ R_m Φ_m + λ_m I)⁻¹ φ_m(z_i) q_m,i``.

    R holds the curvatures ∂²ℓ/∂f², so that ΦᵀRΦ is the projected generalized Gauss-Newton matrix (Koh and Liang 2017;
    Bae et al. 2022). Each checkpoint uses its own q. Options are those of `Trak`.
    """

    def __init__(self, regularization: float | str = "auto", normalize: Normalize = "none") -> None:
        super().__init__(regularization, "gauss_newton", "scores", normalize)
