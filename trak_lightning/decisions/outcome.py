"""What the models say about targets, and which of these are mistakes. Means over checkpoints, in the words of the task. Needs torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trak_lightning.decisions.predictions import Prediction
from trak_lightning.run.formatting import format_percent
from trak_lightning.run.meaning import Meaning
from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.scoring.held_out import target_outputs
from trak_lightning.scoring.mistakes import HALF

Predict = Callable[[Sequence[int]], dict[int, Prediction] | None]
"""Predicts the samples at some positions; None where there are no classes."""

SAID = 8
"""Of how many labels of a sample it is said what the models say."""


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

    def predict(self, predict: Predict, positions: Sequence[int] = (), most: int | None = None) -> None:
        """Predict the targets at `positions`, and those that may be mistakes, unless these are more than `most`."""
        if self.probability is None:
            return
        doubtful = self.doubtful.tolist()
        wanted = {*positions, *(doubtful if most is None or len(doubtful) <= most else ())} - self.predicted.keys()
        if wanted:
            self.predicted.update(predict(sorted(wanted)) or {})

    @property
    def doubtful(self) -> Array:
        """The targets that may be mistakes, ascending: not those with p(label) > 1/2, if this is the probability of one label; none without
        a probability."""
        if self.probability is None:
            return np.arange(0)
        single = self.meaning.probability == "output"
        return np.flatnonzero(self.probability <= HALF) if single else np.arange(len(self.probability))

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


def said(predicted: Prediction, class_name: Callable[[int], str]) -> list[tuple[str, str]]:
    """What the models say of a target; of several labels, also which of them is another."""
    found, most = predicted.probabilities.argmax(1), predicted.probabilities.max(1)
    if not predicted.several:
        return [("models say", f"{class_name(int(found[0]))} ({format_percent(most[0])})")]

    def listed(places: Array, name: Callable[[int], str]) -> str:
        said = [f"{name(place)} ({format_percent(most[place])})" for place in places[:SAID].tolist()]
        return ", ".join([*said, *([f"{len(places) - SAID} more"] if len(places) > SAID else [])])

    term = predicted.term
    if term is None:
        says = listed(np.flatnonzero(found == 1), class_name) or "no label"
        mistakes = listed(predicted.wrong, lambda place: f"{class_name(place)}: {('no', 'yes')[found[place]]}")
    else:
        says = f"{len(predicted.known) - len(predicted.wrong)} of {len(predicted.known)} {term}s as labeled"
        mistakes = listed(predicted.wrong, lambda place: f"{term} {place}: {class_name(int(found[place]))}")
    return [("models say", says), *([("mistakes", mistakes)] if mistakes else [])]
