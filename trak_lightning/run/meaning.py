"""What the output f of a task means, in words, for everything that shows scores to people. Needs no torch."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from trak_lightning.errors import docs_page
from trak_lightning.run.arrays import Array, rms
from trak_lightning.run.formatting import format_number, format_significant

FEWEST, SCALED, CORRELATED = 8, 0.5, 0.9
"""Of how many samples `Meaning.other_scale` judges; and which share of the error, and of the standard deviation of the labels, a linear function
of the predictions leaves at most where these are of another scale than the labels. The second tells them from those of a model that
is not trained."""

NEGATIVE_LOSS = "negative loss"
"""What f is called that is minus the loss."""


@dataclass(frozen=True)
class Meaning:
    """What the output f of a task means. Recorded in ``run.json``; the defaults are for a task of which nothing is known.

    Reports, `trak top` and suspects say of training examples with positive scores that they *raise*, and of those with negative
    scores that they *lower*:

    >>> Meaning("log-odds of the label", "push towards the label", "push away from it", probability="output")
    """

    output: str = "output f"
    """What f is, without an article."""
    raises: str = "raise the output f"
    """What a training example with a positive score does, as a verb phrase in the plural."""
    lowers: str = "lower it"
    probability: Literal["output", "loss_weight", "exp"] | None = None
    """How the probability of the right answer follows from what is stored: ``output`` if it is sigmoid(f), ``loss_weight`` if
    it is 1 − q, ``exp`` if it is exp(f), None if it does not."""
    probability_name: str = "p(label)"
    """What that probability is called. An answer of several parts has their mean: ``mean p(token)``."""
    number: bool = False
    """Whether f predicts a number y with squared error: q = y − f, and a larger f is not a better one. Reports and suspects then
    show y = f + q and the error |q|, and say `raises` and `lowers` in place of helpful and harmful. False where q is anything
    else, such as y − exp(f) of a Poisson regression."""

    def __repr__(self) -> str:
        known = f"; {self.probability_name} is known" if self.probability is not None else ""
        return f"f is the {self.output}{known}; positive scores {self.raises}, negative ones {self.lowers}"

    @property
    def headings(self) -> tuple[str, str]:
        """Headings for examples with the most positive and the most negative scores."""
        return (self.raises.capitalize(), self.lowers.capitalize()) if self.number else ("Most helpful", "Most harmful")

    def probabilities(self, output: Array, loss_weight: Array) -> Array | None:
        """Return the probability of the right answer of each sample, shaped like `output`; None if it is not known."""
        if self.probability is None:
            return None
        if self.probability == "exp":
            return np.exp(np.minimum(output, 0))
        found: Array = (
            np.exp(-np.logaddexp(0, -output)) if self.probability == "output" else np.clip(1 - loss_weight, 0, 1)
        )
        return found

    def facts(self, output: float, probability: float | None) -> list[tuple[str, str]]:
        """Say what the models predict of a sample: what it is called and its value, the most telling first.

        >>> Meaning("log-odds of the label", probability="output").facts(-1.2345, 0.2254)
        [('p(label)', '0.225'), ('log-odds of the label', '−1.234')]
        """
        known = [] if probability is None else [(self.probability_name, f"{probability:.3f}")]
        return [*known, (self.output, format_significant(output))]

    def errors(self, output: Array, loss_weight: Array) -> Array:
        """Return how wrong the model is about each sample, larger for worse, shaped like `output`.

        That is 1 − p where the probability of the right answer is known, and |y − f| for a number. Otherwise it is |q|, the slope of
        the loss, which knows the label as f may not; and −f for a linear loss, whose q is the same for all samples.
        """
        probabilities = self.probabilities(output, loss_weight)
        if probabilities is not None and not self.number:
            return 1 - probabilities
        return -output if self._is_linear(loss_weight) else np.abs(loss_weight)

    def other_scale(self, output: Array, loss_weight: Array) -> str | None:
        """Say that predictions are of another scale than the labels, as where training_step standardizes these; None if they are not, or
        if f predicts no number."""
        labels, error = output + loss_weight, rms(loss_weight)
        if not self.number or len(output) < FEWEST or not np.ptp(output) or not error:
            return None
        slope, intercept = np.polyfit(output, labels, 1)
        fitted = rms(labels - slope * output - intercept)
        if slope <= 0 or fitted > min(SCALED * error, CORRELATED * float(labels.std())):
            return None
        return (
            f"predictions differ from the labels by {format_number(error, 3)} (root mean square), and {format_number(slope, 3)}·f "
            f"{format_number(intercept, 3, '+')} by {format_number(fitted, 3)}: does "
            "training_step scale the labels, or was it trained too little? The loss weight y − f, and so the scores, take the labels of the batch as they "
            f"are. Give task regression the mean and std by which it does, with labels_are: scaled if the dataset has scaled the labels already, or see {docs_page('modalities', 'Labels that training_step scales')}"
        )

    def error_name(self, loss_weight: Array) -> str:
        """Say what `errors` are."""
        if self.number:
            return "error"
        if self.probability is not None:
            return f"1 − {self.probability_name}"
        if not self._is_linear(loss_weight):
            return "slope of the loss, |q|,"
        return "loss" if self.output == NEGATIVE_LOSS else "minus the output"

    def _is_linear(self, loss_weight: Array) -> bool:
        """Whether q is the same for all samples, but for those of which nothing counts, whose q is 0."""
        values = loss_weight[loss_weight != 0]
        return not self.number and bool((values == values[:1]).all())
