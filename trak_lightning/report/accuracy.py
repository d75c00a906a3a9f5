"""How right are the models about the targets? Means over checkpoints, in the words of the task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trak_lightning.decisions.predictions import Prediction
from trak_lightning.report.contents import Headline
from trak_lightning.run.formatting import format_number, format_significant
from trak_lightning.run.meaning import Meaning
from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.scoring.held_out import target_outputs

Predict = Callable[[Sequence[int]], dict[int, Prediction] | None]
"""Predicts the samples at some positions; None where there are no classes."""

MOST_PREDICTED = 5_000
"""Largest number of targets that are predicted to count mistakes."""

ROUNDING = 5e-3
"""By how much a probability may differ that was computed in the precision of the features."""


@dataclass(frozen=True)
class Outcome:
    """What the models say about m targets.

    Attributes:
        output: f of each target, (m,).
        residual: q of each target, (m,): y − f for a number.
        probability: of the right answer, (m,), if known.
        error: larger for targets that the models get more wrong, (m,).
        predicted: what the models say of some targets, by position.
        counted: whether any label of a target counts, bools (m,): f and q are 0 otherwise.
    """

    meaning: Meaning
    output: Array
    residual: Array
    probability: Array | None
    error: Array
    predicted: dict[int, Prediction]
    counted: Array

    @classmethod
    def of(cls, checkpoints: Sequence[CheckpointFeatures], meaning: Meaning) -> "Outcome":
        """Average over checkpoints."""
        output, residual, probability = target_outputs(checkpoints, meaning)
        error = meaning.errors(output, residual) if probability is None else 1 - probability
        counted = (output != 0) | (residual != 0)
        if meaning.number or not counted.any():
            counted[:] = True
        return cls(meaning, output, residual, probability, error, {}, counted)

    def predict(self, predict: Predict, positions: Sequence[int]) -> None:
        """Predict the targets at `positions`, and those that may be mistakes."""
        if self.probability is None:
            return
        doubtful = self._doubtful(self.probability)
        wanted = sorted({*positions, *(doubtful.tolist() if len(doubtful) <= MOST_PREDICTED else ())})
        self.predicted.update(predict(wanted) or {})

    def _doubtful(self, probability: Array) -> Array:
        """The targets that may be mistakes: not those with p(label) > 1/2, if this is the probability of one label."""
        single = self.meaning.probability == "output"
        return np.flatnonzero(probability <= 0.5 + ROUNDING) if single else np.arange(len(probability))

    def correct(self, position: int) -> bool | None:
        """Whether each label is the most probable class; None if that is unknown."""
        found = self.predicted.get(position)
        if found is None or self.probability is None:
            return None
        if len(found.known) or found.several:
            return not len(found.wrong)
        # The task does not say which class is that of the label: the one that has its probability.
        return bool(
            np.abs(found.probabilities[0] - self.probability[position]).argmin() == found.probabilities.argmax()
        )

    def headline(self) -> Headline:
        """Say in one sentence how right the models are."""
        m, name = len(self.output), self.meaning.probability_name
        if self.meaning.number:
            label = self.output + self.residual
            return Headline(
                f"± {format_significant(float(np.sqrt(np.mean(self.residual**2))), 3)}",
                f"is the error of the predictions of {m:,} targets (root mean square), which themselves vary by "
                f"± {format_significant(float(label.std()), 3)}.",
                "targets",
            )
        if self.probability is None:
            return Headline(
                format_number(float(self.output[self.counted].mean()), 3),
                f"is the mean over {int(self.counted.sum()):,} targets of {self.meaning.output}.",
                "targets",
            )
        doubtful = [self.correct(position) for position in self._doubtful(self.probability).tolist()]
        if self.predicted and None not in doubtful:
            return self._share(doubtful.count(False))
        if self.meaning.probability == "output":
            below = int((self.probability <= 0.5).sum())
            return Headline(f"{below:,}", f"of {m:,} targets have {name} below 50 %, and may be mistakes.", "targets")
        m, mean = int(self.counted.sum()), float(self.probability[self.counted].mean())
        return Headline(
            f"{mean:.2g}" if mean < 0.01 else f"{mean:.0%}", f"is the mean over {m:,} targets of {name}.", "targets"
        )

    def _share(self, mistakes: int) -> Headline:
        """Say how many predictions are right, of which `mistakes` targets have a wrong one."""
        m, any_of = len(self.output), next(iter(self.predicted.values()))
        if not any_of.several:
            wrong = "1 is a mistake" if mistakes == 1 else f"{mistakes:,} are mistakes"
            return Headline(
                f"{(m - mistakes) / m:.1%}", f"of {m:,} targets are predicted correctly; {wrong}.", "targets"
            )
        count = sum(len(each.known) for each in self.predicted.values())
        slips = sum(len(each.wrong) for each in self.predicted.values())
        return Headline(
            f"{(count - slips) / count:.1%}",
            f"of {count:,} {any_of.term or 'label'}s are predicted correctly; {mistakes:,} of {m:,} targets have a mistake.",
            "targets",
        )
