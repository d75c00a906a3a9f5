"""How likely is each label wrong, given what models that were not trained on it predict? No torch.

Shapes: n samples, C classes.
"""

from dataclasses import dataclass, replace

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

SUREST = 0.2
"""Share of the predictions of each class that are taken to be right."""

FEW, ALIKE, SMALLEST = 0.02, 0.6, 0.03
"""The share of labels that contradict the surest predictions, the share of those that go to the most frequent wrong label of their
class, and the share of one wrong label in its class, from which on errors count as always the same. Random errors in ten classes
give 0.2 to 0.5 of the second, and errors between fixed pairs 0.8 to 1 (docs/benchmarks.md)."""

DRAWS = 200
"""Number of draws of errors by chance, of which those that are always the same must exceed all."""

STARTS = ((1.0, 0.02), (2.5, 0.15))
"""Sharpness and error rate to start from; the likelihood may have several maxima."""

RATES = (1e-5, 0.5)
"""Error rates between which to search."""

INSIGNIFICANT = 6.6
"""Twice the log-likelihood that a smaller error rate may cost: 99 % quantile of χ² with one degree of freedom."""

STEPS = 7
"""Number of bisections between no errors and the most likely error rate."""

DOUBTFUL = 0.3
"""Sharpness of doubtful predictions, to start from in the search for the smallest error rate."""


@dataclass(frozen=True)
class LabelNoise:
    """A model of how labels came about, fitted to predictions and labels.

    The true class c is drawn from the calibrated prediction ``p_c ∝ exp(−β·d_c − γ·d_c²)``, where d_c is how much less
    log-probability the models give to c than to the class that they find most probable. The label is c with probability
    1 − ε; otherwise it is another class, drawn from ν_c. Classes that the models cannot tell apart give a small β, and errors that
    they contradict with confidence give a large ε. Few samples, or poor models, do not tell these two apart: ε is the smallest
    that is not significantly less likely than the likeliest, with the β and γ that fit best to it.
    """

    sharpness: float
    """β"""
    bend: float
    """γ ≥ 0"""
    rate: float
    """ε, the share of wrong labels."""
    confusion: Array
    """ν (C, C): which label a wrong one of each class gets; rows sum to 1, zero diagonal."""
    learned: Array | None = None
    """T (C, C): which labels each class got, where the models have learned that from the labels; see `learned_confusion`."""

    def probability_wrong(self, log_probabilities: Array, labels: Array) -> Array:
        """Return the posterior probability that each label is not the true class: (n,).

        Args:
            log_probabilities: (n, C), of models that were not trained on the sample.
            labels: (n,) integers.
        """
        right, wrong = self._joint(_gaps(log_probabilities, self.learned), labels)
        found: Array = wrong.sum(1) / (right + wrong.sum(1))
        return found

    def _joint(self, gaps: Array, labels: Array) -> tuple[Array, Array]:
        """The probability of the label together with: the label is right, (n,); it is wrong and the class is c, (n, C)."""
        calibrated = softmax(-gaps * (self.sharpness + self.bend * gaps), axis=1)
        right = (1 - self.rate) * calibrated[np.arange(len(labels)), labels]
        return right, self.rate * calibrated * self.confusion[:, labels].T


def fit_label_noise(log_probabilities: Array, labels: Array) -> LabelNoise:
    """Fit the model by maximum likelihood, β, γ and ε by L-BFGS, ν by expectation maximization; then lower ε to the end of its
    confidence interval (`INSIGNIFICANT`).

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
    known = labels[rows]
    learned = learned_confusion(log_probabilities[rows], known)
    gaps = _gaps(log_probabilities[rows], learned)
    uniform = (1 - np.eye(C)) / (C - 1)
    prior = PRIOR * (C - 1) * (uniform if learned is None else (uniform + _off_diagonal(learned)) / 2)
    fits = []
    for sharpness, rate in STARTS:
        model = LabelNoise(sharpness, 0.0, rate, uniform, learned)
        for _ in range(ROUNDS):
            model, loss = _fit_calibration(model, gaps, known)
            model = _fit_confusion(model, gaps, known, prior)
        fits.append((loss, model))
    return _smallest_rate(min(fits, key=lambda fit: fit[0])[1], gaps, known)


def expected_false_alarms(wrong: Array) -> Array:
    """Return the share of right labels to expect among the first 1, 2, … n of the most suspicious samples, and one standard
    deviation of it more: (n,).

    Args:
        wrong: (n,) probabilities, descending.
    """
    found: Array = (np.cumsum(1 - wrong) + np.sqrt(np.cumsum(wrong * (1 - wrong)))) / np.arange(1, len(wrong) + 1)
    return found


def learned_confusion(log_probabilities: Array, labels: Array) -> Array | None:
    """Find out whether labels are wrong in always the same way, which models learn: then they give the wrong label a probability
    as high as its share, and contradict none.

    Of the `SUREST` predictions of each class, the labels are counted. Where enough of them contradict, and most of those of a
    class with the same label, and more of them than by chance, the mean of these predictions is T (C, C), for the labels that contradict them; rows sum to 1
    (Patrini et al. 2017 read T from the surest prediction alone). Of two classes there is only one way to be wrong, so nothing can be concluded.

    Returns:
        None where errors are few, or fall on all classes alike, or may do so.
    """
    C = log_probabilities.shape[1]
    p = softmax(log_probabilities.astype(np.float64), axis=1)
    says, confidence = p.argmax(1), p.max(1)
    counts, predicted = np.zeros((2, C, C))
    for c in range(C):
        members = np.flatnonzero(says == c)
        if len(members):
            surest = members[confidence[members] >= np.quantile(confidence[members], 1 - SUREST)]
            counts[c], predicted[c] = np.bincount(labels[surest], minlength=C), p[surest].mean(0)
    wrong = counts * (1 - np.eye(C))
    if C == 2 or wrong.sum() < FEW * counts.sum() or wrong.max(1).sum() < ALIKE * wrong.sum():
        return None
    if wrong.max(1).sum() <= _most_alike_by_chance(wrong.sum(1), np.bincount(labels, minlength=C)):
        return None
    shares = wrong / np.maximum(counts.sum(1, keepdims=True), 1)
    learned = np.where(shares >= SMALLEST, np.minimum(shares, predicted), 0)
    found: Array = learned + np.diag(1 - learned.sum(1))
    return found


def _most_alike_by_chance(wrong: Array, frequency: Array) -> int:
    """The largest sum over classes, in `DRAWS` draws, of how often the most frequent wrong label occurs, if wrong labels (C,) are drawn
    from the labels of all other classes (C,). Of three errors between three classes, two are often alike."""
    generator, found = np.random.default_rng(0), np.zeros(DRAWS, dtype=np.int64)
    for c in np.flatnonzero(wrong):
        others = np.delete(frequency, c) / max(frequency.sum() - frequency[c], 1)
        found += generator.multinomial(int(wrong[c]), others, size=DRAWS).max(1)
    return int(found.max())


def _gaps(log_probabilities: Array, learned: Array | None = None) -> Array:
    """d (n, C), of predictions from which a learned confusion was taken out: p T⁻¹ where p was predicted."""
    values = log_probabilities.astype(np.float64)
    if learned is not None:
        p = softmax(values, axis=1)
        values = np.log(np.maximum(p @ np.linalg.pinv(learned), 1e-3 * p + 1e-12))
    found: Array = values.max(1, keepdims=True) - values
    return found


def _off_diagonal(learned: Array) -> Array:
    """Which wrong label each class gets: rows sum to 1, evenly where there is none."""
    C = len(learned)
    wrong = learned * (1 - np.eye(C))
    total = wrong.sum(1, keepdims=True)
    return np.where(total > 0, wrong / np.maximum(total, 1e-12), (1 - np.eye(C)) / (C - 1))


def _smallest_rate(model: LabelNoise, gaps: Array, labels: Array) -> LabelNoise:
    """The model with the smallest error rate whose profile likelihood is not significantly smaller, by bisection."""

    def fit(rate: float) -> tuple[LabelNoise, float]:
        starts = replace(model, rate=rate), replace(model, rate=rate, sharpness=DOUBTFUL, bend=0.0)
        return min((_fit_calibration(start, gaps, labels, (rate, rate)) for start in starts), key=lambda fit: fit[1])

    found, best = fit(model.rate)
    low, high = RATES[0], model.rate
    rate = low  # no errors at all, first
    for _ in range(STEPS):
        lower, loss = fit(rate)
        if 2 * len(labels) * (loss - best) <= INSIGNIFICANT:
            found, high = lower, rate
            if rate == low:
                break
        else:
            low = rate
        rate = (low + high) / 2
    return found


def _fit_calibration(
    model: LabelNoise, gaps: Array, labels: Array, rates: tuple[float, float] = RATES
) -> tuple[LabelNoise, float]:
    """Fit β, γ, and ε in the interval `rates`; return the loss per sample, too."""
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
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.05, 20), (0, 5), logit(rates)])
    sharpness, bend, odds = map(float, found.x)
    return replace(model, sharpness=sharpness, bend=bend, rate=float(expit(odds))), float(found.fun)


def _fit_confusion(model: LabelNoise, gaps: Array, labels: Array, prior: Array) -> LabelNoise:
    """Count wrong labels by true class."""
    C = gaps.shape[1]
    right, wrong = model._joint(gaps, labels)
    wrong /= (right + wrong.sum(1))[:, None]
    counts = wrong.T @ (labels[:, None] == np.arange(C)) + prior
    np.fill_diagonal(counts, 0)
    return replace(model, confusion=counts / counts.sum(1, keepdims=True))
