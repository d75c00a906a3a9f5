"""How likely is each label wrong, given what models that were not trained on it predict? No torch.

Shapes: n samples, C classes.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit, softmax

from trak_lightning.errors import DataError
from trak_lightning.scoring.base import Array, evenly

ROUNDS = 10
FITTED = 20_000
"""Number of samples, evenly spaced, that the model is fitted to."""

PRIOR = 20.0
"""Wrong labels that each pair of classes is taken to have had before counting: so many keep ν from mistaking ordinary doubt
between two similar classes for label errors."""

STARTS = ((1.0, 0.02), (2.5, 0.15))
"""Sharpness and error rate to start from; the likelihood may have several maxima."""


@dataclass(frozen=True)
class LabelNoise:
    """A model of how labels came about, fitted to predictions and labels.

    The true class c is drawn from the calibrated prediction ``p_c ∝ exp(−β·d_c − γ·d_c²)``, where d_c is how much less
    log-probability the models give to c than to the class that they find most probable. The label is c with probability
    1 − ε; otherwise it is another class, drawn from ν_c. All parameters maximize the likelihood of the labels. Classes that
    the models cannot tell apart give a small β, and errors that they contradict with confidence give a large ε.
    """

    sharpness: float
    """β"""
    bend: float
    """γ ≥ 0"""
    rate: float
    """ε, the share of wrong labels."""
    confusion: Array
    """ν (C, C): which label a wrong one of each class gets; rows sum to 1, zero diagonal."""

    def probability_wrong(self, log_probabilities: Array, labels: Array) -> Array:
        """Return the posterior probability that each label is not the true class: (n,).

        Args:
            log_probabilities: (n, C), of models that were not trained on the sample.
            labels: (n,) integers.
        """
        right, wrong = self._joint(_gaps(log_probabilities), labels)
        found: Array = wrong.sum(1) / (right + wrong.sum(1))
        return found

    def _joint(self, gaps: Array, labels: Array) -> tuple[Array, Array]:
        """The probability of the label together with: the label is right, (n,); it is wrong and the class is c, (n, C)."""
        calibrated = softmax(-gaps * (self.sharpness + self.bend * gaps), axis=1)
        right = (1 - self.rate) * calibrated[np.arange(len(labels)), labels]
        return right, self.rate * calibrated * self.confusion[:, labels].T


def fit_label_noise(log_probabilities: Array, labels: Array) -> LabelNoise:
    """Fit the model by maximum likelihood: β, γ and ε by L-BFGS, ν by expectation maximization.

    Args:
        log_probabilities: (n, C), of models that were not trained on the sample.
        labels: (n,) integers.

    Raises:
        DataError: the labels are not n classes, or there is one class only.
    """
    n, C = log_probabilities.shape
    if C < 2 or labels.shape != (n,) or not 0 <= labels.min() <= labels.max() < C:
        raise DataError(
            f"labels must be {n} integers in 0 … C − 1 with C ≥ 2; predictions are of {C} classes, and labels have shape "
            f"{labels.shape} and the values {labels.min()} … {labels.max()}"
        )
    rows = evenly(n, FITTED)
    gaps, known = _gaps(log_probabilities[rows]), labels[rows]
    uniform = (1 - np.eye(C)) / (C - 1)
    fits = []
    for sharpness, rate in STARTS:
        model = LabelNoise(sharpness, 0.0, rate, uniform)
        for _ in range(ROUNDS):
            model, loss = _fit_calibration(model, gaps, known)
            model = _fit_confusion(model, gaps, known)
        fits.append((loss, model))
    return min(fits, key=lambda fit: fit[0])[1]


def expected_false_alarms(wrong: Array) -> Array:
    """Return the share of right labels to expect among the first 1, 2, … n of the most suspicious samples: (n,).

    Args:
        wrong: (n,) probabilities, descending.
    """
    found: Array = np.cumsum(1 - wrong) / np.arange(1, len(wrong) + 1)
    return found


def _gaps(log_probabilities: Array) -> Array:
    values = log_probabilities.astype(np.float64)
    found: Array = values.max(1, keepdims=True) - values
    return found


def _fit_calibration(model: LabelNoise, gaps: Array, labels: Array) -> tuple[LabelNoise, float]:
    rows, squares = np.arange(len(labels)), gaps**2
    confused = model.confusion[:, labels].T  # zero at the label itself

    def loss(parameters: Array) -> tuple[float, Array]:
        sharpness, bend, odds = parameters
        rate = expit(odds)
        p = softmax(-sharpness * gaps - bend * squares, axis=1)
        right, wrong = p[rows, labels], (p * confused).sum(1)
        likelihood = (1 - rate) * right + rate * wrong
        slope = p * (rate * (confused - wrong[:, None]) - (1 - rate) * right[:, None])
        slope[rows, labels] += (1 - rate) * right
        slope /= likelihood[:, None]
        gradient = [
            (slope * gaps).sum(),
            (slope * squares).sum(),
            ((right - wrong) / likelihood).sum() * rate * (1 - rate),
        ]
        return -float(np.log(likelihood).mean()), np.array(gradient) / len(labels)

    start = [model.sharpness, model.bend, logit(model.rate)]
    # The bounds keep a sample that no prediction explains from having the probability 0.
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.05, 20), (0, 5), (logit(1e-5), logit(0.5))])
    sharpness, bend, odds = map(float, found.x)
    return LabelNoise(sharpness, bend, float(expit(odds)), model.confusion), float(found.fun)


def _fit_confusion(model: LabelNoise, gaps: Array, labels: Array) -> LabelNoise:
    """Count wrong labels by true class."""
    C = gaps.shape[1]
    right, wrong = model._joint(gaps, labels)
    wrong /= (right + wrong.sum(1))[:, None]
    counts = wrong.T @ (labels[:, None] == np.arange(C)) + PRIOR
    np.fill_diagonal(counts, 0)
    return LabelNoise(model.sharpness, model.bend, model.rate, counts / counts.sum(1, keepdims=True))
