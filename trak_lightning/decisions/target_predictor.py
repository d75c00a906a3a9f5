"""Which targets are mistakes of the models. They are predicted when it is first asked for, since scores do not hold what models say. Needs torch."""

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

from trak_lightning.decisions.outcome import Outcome, Predict, said
from trak_lightning.errors import NothingPredictedError
from trak_lightning.run.formatting import format_significant
from trak_lightning.scoring.mistakes import HALF, Mistake, Mistakes


class NamesLabels(Protocol):
    """Names labels of targets and classes, such as `trak_lightning.report.Samples`."""

    def label(self, index: int) -> str | None: ...

    def class_name(self, label: int) -> str: ...


class TargetPredictor:
    """Predicts scored targets with the checkpoints that their features are of.

    Args:
        outcome: reads what is stored of the targets.
        predict: predicts targets.
        verify: compares model, task and data with the stored rows, once, before anything is predicted.
        targets: names their labels.
    """

    def __init__(
        self,
        outcome: Callable[[], Outcome],
        predict: Predict,
        verify: Callable[[], None],
        targets: NamesLabels,
    ) -> None:
        self._read = outcome
        self._verify = verify
        self._predict = predict
        self._targets = targets

    @cached_property
    def _outcome(self) -> Outcome:
        self._verify()
        return self._read()

    def mistakes(self) -> Mistakes:
        """Find the targets whose label is not what the models say, worst first.

        Raises:
            NothingPredictedError: the task predicts neither classes nor numbers.
            StaleRowsError: the stored rows are not those of the model, the task and the data as they are now.
            CheckpointError: a checkpoint cannot be read any more.
        """
        outcome, m = self._outcome, len(self._outcome.output)
        order = [int(each) for each in (-outcome.error).argsort(kind="stable")]
        if outcome.meaning.number:
            return Mistakes(tuple(map(self._number, order)), m, number=True)
        outcome.predict(self._predict, outcome.doubtful.tolist())
        doubtful = set(outcome.doubtful.tolist())
        if outcome.probability is None or not doubtful <= outcome.predicted.keys():
            known = outcome.meaning.probability is not None
            what, key = (
                (outcome.meaning.probability_name, "probability") if known else (outcome.meaning.output, "output")
            )
            raise NothingPredictedError(
                f"the task predicts neither classes nor numbers, so that no target is right or wrong. Rank targets by {what} instead: "
                f"scores.outputs()[{key!r}].argsort() in Python, lowest first, or trak top without a target"
            )
        return Mistakes(tuple(self._mistake(each) for each in order if outcome.correct(each) is False), m)

    def says(self, target: int) -> str | None:
        """What the models say of a target with one label where that is not its label; None if it is, or is not known."""
        outcome = self._outcome
        if outcome.probability is None or outcome.meaning.probability != "output" or outcome.probability[target] > HALF:
            return None
        outcome.predict(self._predict, [target], most=0)
        found = outcome.predicted.get(target)
        return None if found is None or found.several or outcome.correct(target) else self._mistake(target).said

    def _number(self, target: int) -> Mistake:
        outcome = self._outcome
        label, says = outcome.output[target] + outcome.residual[target], outcome.output[target]
        error = float(outcome.error[target])
        return Mistake(target, format_significant(float(label)), format_significant(float(says)), None, None, error)

    def _mistake(self, target: int) -> Mistake:
        predicted, probability = self._outcome.predicted[target], self._outcome.probability
        assert probability is not None
        label, p = self._targets.label(target), float(probability[target])
        if predicted.several:
            return Mistake(target, label, said(predicted, self._targets.class_name)[-1][1], None, p, None)
        says = int(predicted.probabilities[0].argmax())
        if label is None and len(predicted.known):
            label = self._targets.class_name(int(predicted.labels[0]))
        name = self._targets.class_name(says)
        return Mistake(target, label, name, float(predicted.probabilities[0, says]), p, None)
