"""How right are the models about the targets? Means over checkpoints, in the words of the task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trak_lightning.report.contents import Headline
from trak_lightning.run.formatting import format_number, format_significant
from trak_lightning.run.meaning import Meaning
from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.scoring.held_out import target_outputs

Predict = Callable[[Sequence[int]], Array | None]
"""Maps positions to mean class probabilities (s, C); None where there are no classes."""

MOST_PREDICTED = 5_000
"""Largest number of targets that are predicted to count mistakes."""

ROUNDING = 5e-3
"""Difference of two probabilities that may come from the precision in which features were computed."""


@dataclass(frozen=True)
class Outcome:
    """What the models say about m targets.

    Attributes:
        output: f of each target, (m,).
        residual: q of each target, (m,): y − f for a number.
        probability: of the right answer, (m,), if known.
        error: larger for targets that the models get more wrong, (m,).
        predicted: class probabilities of some targets by position, (C,) each.
    """

    meaning: Meaning
    output: Array
    residual: Array
    probability: Array | None
    error: Array
    predicted: dict[int, Array]

    @classmethod
    def of(cls, checkpoints: Sequence[CheckpointFeatures], meaning: Meaning) -> "Outcome":
        """Average over checkpoints."""
        output, residual, probability = target_outputs(checkpoints, meaning)
        error = meaning.errors(output, residual) if probability is None else 1 - probability
        return cls(meaning, output, residual, probability, error, {})

    def predict(self, predict: Predict, positions: Sequence[int]) -> None:
        """Predict the targets at `positions`, and those that may be mistakes: with p(label) > 1/2 a target is none."""
        if self.probability is None:
            return
        doubtful = np.flatnonzero(self.probability <= 0.5)
        wanted = sorted({*positions, *(doubtful.tolist() if len(doubtful) <= MOST_PREDICTED else ())})
        found = predict(wanted)
        if found is not None:
            self.predicted.update(zip(wanted, found, strict=True))

    def correct(self, position: int) -> bool | None:
        """Whether the right answer is the most probable class; None if that is unknown."""
        if self.probability is None or position not in self.predicted:
            return None
        return bool(self.probability[position] >= self.predicted[position].max() - ROUNDING)

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
                format_number(float(self.output.mean()), 3),
                f"is the mean over {m:,} targets of: {self.meaning.output}.",
                "targets",
            )
        doubtful = np.flatnonzero(self.probability <= 0.5)
        if self.predicted and all(int(position) in self.predicted for position in doubtful):
            wrong = sum(self.correct(int(position)) is False for position in doubtful)
            mistakes = "1 is a mistake" if wrong == 1 else f"{wrong:,} are mistakes"
            return Headline(
                f"{(m - wrong) / m:.1%}", f"of {m:,} targets are predicted correctly; {mistakes}.", "targets"
            )
        if self.meaning.probability == "output":
            return Headline(
                f"{len(doubtful):,}", f"of {m:,} targets have {name} below 50 %, and may be mistakes.", "targets"
            )
        mean = float(self.probability.mean())
        return Headline(
            f"{mean:.2g}" if mean < 0.01 else f"{mean:.0%}", f"is {name}, averaged over {m:,} targets.", "targets"
        )
