"""Training samples whose label is likely wrong, and how many of them to expect to be right. No torch.

Shapes: n training samples, C classes, T labels of a sample that has several.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from scipy.special import softmax

from trak_lightning.decisions.label_noise import expected_false_alarms, fit_label_noise
from trak_lightning.errors import SettingsError, is_integer, needed_for, require_integer
from trak_lightning.run.atomic import atomic_write
from trak_lightning.run.formatting import counted, format_number, format_percent, format_significant
from trak_lightning.run.meaning import Meaning
from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.scoring.display import SEPARATOR, ShowsLines, are_picture_sizes, shortened
from trak_lightning.scoring.held_out import held_out, held_out_mean, output_and_loss_weight
from trak_lightning.scoring.self_influence import SelfInfluence, self_influence

if TYPE_CHECKING:
    from trak_lightning.decisions.predictions import Predictions

HIGHEST_LEVERAGE = 0.99
"""The leverage of a sample that is alone in its direction is 1 up to rounding."""

WEAK = 0.65
"""Models that are right on a smaller share of samples contradict right labels too surely for a promise (docs/benchmarks.md)."""

MODERATE = 0.4
"""Cohen's κ between labels and predictions below which nothing tells poor models from many wrong labels: moderate agreement begins there (Landis
and Koch 1977)."""

TRIED, TRIALS = 0.1, " (in trials: at most 20 % on three lists of four)"
"""The share of false alarms that was asked for in trials, and what was realized; see docs/benchmarks.md."""

TRIALS_OF_SEVERAL = " (in trials: up to 22 %)"
"""The same for samples with several labels; see docs/decisions.md."""

LOOKED_AT = 20
"""Of how many samples, the most suspicious ones, it is seen whether samples have text to write."""


@dataclass(frozen=True)
class Suspect:
    """A training sample, and what speaks against its label."""

    index: int
    """Position in the training set."""
    before_cut: bool | None
    """Whether the sample is before the cut, to drop or to review; None for a task without classes, whose ranking has no cut."""
    label: str | None
    """The class, or the number y; of several labels, the one that is most likely wrong: ``cat: yes``, ``token 5: noun``. None for a task that
    has none of these."""
    says: str | None
    """The class that the models find most probable, or the number that they predict; None for a task that has neither."""
    wrong: float | None
    """Probability that the label is wrong. None where it is not known: if nothing is before the cut, since the predictions then give a lower
    bound only, often near 0 (`LabelNoise`); for a sample that every model was trained on; if the models are right on too few labels; and without
    classes."""
    error: float | None
    """What the ranking is by for a task without classes (`Suspects.basis`); None for a task with classes."""
    why: str
    """The evidence, in words."""
    text: str | None = None
    """The content of the sample in one line; None if the data is not at hand, or of pictures alone."""

    def __repr__(self) -> str:
        label, why = self.label, self.why
        if self.error is not None:
            error = format_significant(self.error)
            if label is None:
                why = f"error {error} {why}".rstrip()
            else:
                label, why = format_significant(label), why.replace("label ", f"label {error} ", 1)
        text = "" if self.text is None else f"{SEPARATOR}{self.text}"
        return f"#{self.index}{'' if label is None else f' labeled {label}'}: {why}{text}"


@dataclass(frozen=True)
class Suspects(Sequence[Suspect]):
    """Training samples in the order of suspicion, and a cut. As a sequence it holds the samples before the cut.

    A task without classes has no cut: the sequence is empty, and `first` reads the ranking.
    """

    ranking: Array
    """(n,) positions of all training samples, most suspicious first."""
    size: int
    """The number of samples before the cut."""
    fdr: float
    """The share of false alarms asked for."""
    expected: float | None
    """The share of false alarms expected before the cut, with one standard deviation; None if nothing is before it, or no share is
    promised (`find_suspects`)."""
    errors: float | None
    """The estimated number of wrong labels in the whole training set; None without classes, or if the models were trained on all of it or are right
    on too few labels."""
    basis: str
    """What the ranking is made from, in words."""
    suspicion: Array
    """(n,) in the order of the training set: probability that the label is wrong; the error for a task without classes."""
    learned: bool = False
    """Whether errors between the same classes were found in what the models have learned (`learned_confusion`)."""
    predictions: "Predictions | None" = None
    """What the ranking is made from: of several labels, those of the one that is most likely wrong. For samples that all models were trained
    on, corrected by leaving them out in closed form, if they have one label."""
    class_names: Sequence[str] | None = None
    numbers: Array | None = None
    """(n,) the numbers y to predict, for a task that predicts numbers."""
    predicted: Array | None = None
    """(n,) what the models predict, for such a task."""
    models: Array | None = None
    """(n,) how many models were not trained on a sample, for a task without classes; 0 where all were, whose mean is taken then."""
    other_scale: str | None = None
    """What says that predictions are of another scale than the numbers, which makes the ranking wrong; None if they are not."""
    unpromised: str | None = None
    """Why no share of false alarms is promised for the samples before the cut, in words; None if one is."""
    contradicted: str = ""
    """How many labels the models contradict, in words."""
    unreliable: str | None = None
    """That the models are right on too few labels for the ranking to be reliable, in words; None if they are right on enough."""
    samples: ShowsLines | None = field(default=None, compare=False)
    """Shows the training samples, if the data is at hand; left behind by pickle."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "samples": None}

    @property
    def has_cut(self) -> bool:
        """Whether the task has classes, so that the ranking can be cut."""
        return self.predictions is not None

    @property
    def indices(self) -> Array:
        """(size,) positions of the samples before the cut, to drop or to review."""
        return self.ranking[: self.size]

    def first(self, count: int) -> list[Suspect]:
        """Return the `count` most suspicious samples, whether before the cut or not."""
        places = range(min(require_integer("count", count, 0), len(self.ranking)))
        return [self._suspect(place) for place in places]

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, place: int) -> Suspect: ...
    @overload
    def __getitem__(self, place: slice) -> list[Suspect]: ...
    def __getitem__(self, place: int | slice) -> Suspect | list[Suspect]:
        if isinstance(place, slice):
            return [self._suspect(each) for each in range(self.size)[place]]
        if not is_integer(place):
            raise TypeError(f"suspects are indexed with an integer or a slice, got {place!r}")
        if not -self.size <= place < self.size:
            raise IndexError(f"place {place} is out of range: {self.size} samples are before the cut; see first(k)")
        return self._suspect(range(self.size)[place])

    def __iter__(self) -> Iterator[Suspect]:
        return map(self._suspect, range(self.size))

    def __repr__(self) -> str:
        return "\n".join([self.describe(), *map(repr, self.first(5))])

    def describe(self) -> str:
        """Say in one sentence what was found."""
        if self.predictions is None:
            n = len(self.ranking)
            found = f"{n:,} training samples ranked by {self.basis}; no cut: the task has no classes. {self.finding.removesuffix('.')}"
            return found if self.other_scale is None else f"{found}. Not to be trusted: {self.other_scale}"
        return f"{self.finding} Basis: {self.basis}"

    @property
    def finding(self) -> str:
        """What is before the cut, how far to trust that, and how much of the ranking to review, in sentences."""
        n, what = len(self.ranking), "labels"
        if self.predictions is None:
            return "What models find difficult comes first, which is a wrong label only where they are right about most others like it."
        if not self.size:
            return (
                f"no label can be called wrong with {_percent(self.fdr)} false alarms, which does not mean that the labels are right: the models "
                f"contradict {self.contradicted}, which may be mistakes of their own. {self._doubt}{self.how_far or 'Review the ranking from the top'}."
            )
        if self.unpromised is not None:
            what = f"{self.size:,} of {n:,} {'samples' if self.has_several else 'labels'} to review first ({self.unpromised})"
        elif self.has_several:
            what = f"samples with a label that is likely wrong: {self.size:,} of {n:,}, of which {self.false_alarms}"
        else:
            what = f"labels that are likely wrong: {self.size:,} of {n:,}, of which {self.false_alarms}"
        return f"{what}. {self._doubt}{f'{self.how_far}. ' if self.how_far else ''}".rstrip()

    @property
    def _doubt(self) -> str:
        return "" if self.unreliable is None else f"{self.unreliable}. "

    @property
    def how_far(self) -> str | None:
        """Say how many labels at least are estimated to be wrong, and so how much of the ranking to review; None if that is unknown, or no more
        than are before the cut."""
        count = 0 if self.errors is None else round(self.errors)
        if count <= self.size or not self.has_cut:
            return None
        return f"Review the ranking from the top: at least about {count} label{'s' * (count != 1)} {'are' if count != 1 else 'is'} estimated to be wrong"

    @property
    def has_several(self) -> bool:
        """Whether samples have several labels."""
        return self.predictions is not None and self.predictions.label_of is not None

    @property
    def false_alarms(self) -> str:
        """How many false alarms to expect before the cut, in words."""
        if self.expected is None:
            return "no share of false alarms is promised"
        trials = (TRIALS_OF_SEVERAL if self.has_several else TRIALS) if self.fdr == TRIED else ""
        return f"about {_percent(self.expected)} are expected to be false alarms{trials}"

    def to_json(self, count: int | None = None) -> dict[str, Any]:
        """Return the findings as JSON values, with the first `count` samples. If None, with those before the cut, or all if nothing is before
        it or there is no cut; ``indices`` is null where there is none."""
        return {
            "found": self.describe(),
            "indices": self.indices.tolist() if self.has_cut else None,
            "fdr": self.fdr,
            "expected_false_alarms": self.expected,
            "estimated_errors": self.errors,
            "basis": self.basis,
            "suspects": self._rows(self._listed if count is None else min(count, len(self.ranking))),
        }

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a row for each training sample, most suspicious first, and the columns of `Suspect`.

        Raises:
            DataError: pandas is not installed.
        """
        with needed_for("to_frame", "pandas"):
            import pandas as pd
        return pd.DataFrame(self._rows(len(self.ranking)))

    def to_csv(self, path: str | Path, *, whole: bool = False) -> None:
        """Write the samples before the cut as a table, or the `whole` ranking, also if nothing is before the cut: index, before_cut, label, says,
        wrong, why and, where samples have text, text.

        If there is no cut, write all of the ranking: index, label and says where they are numbers, error, why, text.
        """
        rows = self._rows(len(self.ranking) if whole else self._listed)
        known = [
            name
            for name, value in rows[0].items()
            if (name != "error" and (name != "text" or self._has_text) if self.has_cut else value not in (None, ""))
        ]
        with atomic_write(Path(path)) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, known, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    @property
    def _listed(self) -> int:
        """How many samples are listed unless it is said how many."""
        return self.size or len(self.ranking)

    @property
    def _has_text(self) -> bool:
        return any(each.text is not None for each in self.first(LOOKED_AT))

    def _rows(self, count: int) -> list[dict[str, Any]]:
        """The first `count` samples; none is read for its text where the first have none, such as pictures."""
        suspect = self._suspect if self._has_text else self._without_text
        return [asdict(suspect(place)) for place in range(count)]

    def _suspect(self, place: int) -> Suspect:
        """The sample at this place of the ranking."""
        found = self._without_text(place)
        line = "" if self.samples is None else shortened(self.samples.show(found.index).line)
        return found if not line or are_picture_sizes([line]) else replace(found, text=line)

    def _without_text(self, place: int) -> Suspect:
        found, index = self.predictions, int(self.ranking[place])
        if found is None:
            return self._without_classes(index)
        number, log_p = int(found.labels[index]), found.log_probabilities[index].astype(np.float64)
        p = softmax(log_p)
        best, count = int(p.argmax()), int(found.held_out[index])
        other = int(np.argmax(np.where(np.arange(len(p)) == number, -1, p)))
        alone = "models trained on it: " if self.has_several else "left out in closed form: "
        alone = alone if found.held_out.any() else ""  # the basis says it of all
        own, says, contrary = (self._name(each) for each in (number, best, other))
        where = self._where(index)
        who = f"{_who(count)}: " if count else alone
        why = f"{who}p({own}) {_percent(p[number])}, p({contrary}) {_percent(p[other])}"
        wrong = float(self.suspicion[index]) if self.size and count and self.unreliable is None else None
        return Suspect(index, place < self.size, where + own, where + says, wrong, None, why)

    def _without_classes(self, index: int) -> Suspect:
        error, who = float(self.suspicion[index]), ""
        if self.models is not None and self.models.any():  # otherwise the basis says it of all
            count = int(self.models[index])
            who = _who(count) if count else "models trained on it"
        if self.numbers is None or self.predicted is None:
            return Suspect(index, None, None, None, None, error, who and f"judged by {who}")
        label, says = float(self.numbers[index]), float(self.predicted[index])
        why = f"label {'above' if label > says else 'below'} the prediction{who and f' of {who}'}"
        return Suspect(index, None, format_number(label, 6), format_number(says, 6), None, error, why)

    def _name(self, label: int) -> str:
        """The name of a class, or an answer."""
        if self.has_several and self.predictions is not None and self.predictions.term is None:
            return ("no", "yes")[label]
        return _named(self.class_names, label)

    def _where(self, index: int) -> str:
        """Which of the labels of a sample is meant, if it has several."""
        found = self.predictions
        if found is None or found.label_of is None:
            return ""
        place = int(found.label_of[index])
        return f"{_named(self.class_names, place) if found.term is None else f'{found.term} {place}'}: "


def find_suspects(
    checkpoints: Sequence[CheckpointFeatures],
    predictions: "Predictions | None",
    meaning: Meaning,
    *,
    fdr: float = 0.1,
    class_names: Sequence[str] | None = None,
) -> Suspects:
    """Rank training samples by the probability that their label is wrong, and cut where the expected share of false alarms, with one
    standard deviation, exceeds `fdr`.

    With classes, `LabelNoise` is fitted to the predictions of checkpoints that were not trained on the sample. Where every
    checkpoint was, the log-odds of the label are first lowered by qφᵀ(ΦᵀWΦ + λI)⁻¹φ / (1 − leverage), the closed form of
    leaving the sample out. What is predicted in this way is off by several times, so the cut comes without an expected share of
    false alarms if most samples before it are of this kind; also if the models are right on less than `WEAK` of the samples, agree
    with the labels little more than by chance (`MODERATE`), or have learned errors between classes (`learned_confusion`). Without classes, the ranking is by the error, and there is no cut.

    All labels of samples that have several are judged together, and a sample by the probability that any of its labels is wrong.
    What would be predicted without a sample is not known for each of them, so that predictions are then taken as they are.

    Args:
        checkpoints: the stored features of the training set.
        predictions: of the classes; None for a task without classes.
        meaning: what the output of the task means.
        fdr: the largest expected share of right labels among the samples before the cut.
        class_names: names of the classes 0, 1, …, or of yes-or-no labels.

    Raises:
        SettingsError: `fdr` is not between 0 and 1.
    """
    if not (isinstance(fdr, Real) and 0 < fdr < 1):
        raise SettingsError(f"fdr, the share of false alarms, must lie between 0 and 1, got {fdr!r}")
    if predictions is None:
        return _without_classes(checkpoints, meaning, fdr)
    seen, several = predictions.held_out == 0, predictions.labels.ndim == 2
    if seen.any() and not several:
        log_p = predictions.log_probabilities.copy()
        log_p[seen, predictions.labels[seen]] -= _leave_one_out_fall(self_influence(checkpoints))[seen]
        predictions = replace(predictions, log_probabilities=log_p)
    judged = _judge_several(predictions) if several else _judge(predictions)
    predictions, wrong = judged.predictions, judged.wrong
    ranking = np.lexsort((-_against(predictions), -wrong))  # many probabilities are 1 up to rounding
    expected = expected_false_alarms(wrong[ranking])
    size = int(np.max(np.flatnonzero(expected <= fdr) + 1, initial=0))
    unpromised = _unpromised(judged, mostly_seen=bool(seen[ranking[:size]].sum() > size / 2))
    return Suspects(
        ranking,
        size,
        fdr,
        float(expected[size - 1]) if size and unpromised is None else None,
        None if seen.all() or judged.weak else judged.errors,
        _basis(predictions.held_out, corrected=not several),
        wrong,
        judged.learned,
        predictions,
        class_names,
        unpromised=unpromised,
        contradicted=judged.contradicted,
        unreliable=_unreliable(judged),
    )


def _unreliable(judged: "_Judgment") -> str | None:
    if not judged.weak:
        return None
    return (
        f"The models get {judged.correct:,} of {judged.total:,} labels right ({_percent(judged.correct / judged.total)}, and {_percent(judged.chance)} would "
        "be chance): too few for a reliable list"
    )


def _unpromised(judged: "_Judgment", *, mostly_seen: bool) -> str | None:
    """Why no share of false alarms is promised, if none is."""
    if mostly_seen:
        return "models trained on all samples cannot promise a share of false alarms"
    if judged.learned:
        return "a share of false alarms cannot be promised where wrong labels of a class are mostly one and the same, which models learn"
    if judged.weak:
        return "no share of false alarms can be promised"
    return None


class _Judgment(NamedTuple):
    predictions: "Predictions"
    """Of one label per sample."""
    wrong: Array
    """(n,): the probability that a label of the sample is wrong."""
    errors: float
    """The estimated number of wrong labels."""
    right: float
    """How often the models are right about a label, corrected for labels that are wrong."""
    correct: int
    """The number of labels that are the most probable class, of `total`."""
    total: int
    chance: float
    """The share of labels that would be right if labels and predictions had nothing to do with each other."""
    learned: bool
    contradicted: str
    """How many labels the models contradict, in words."""

    @property
    def weak(self) -> bool:
        """Whether the models are right on too few labels for a promise."""
        agreement = self.correct / self.total
        return self.right < WEAK or agreement - self.chance < MODERATE * (1 - self.chance)


def _judge(predictions: "Predictions") -> _Judgment:
    log_p, labels = predictions.log_probabilities, predictions.labels
    model = fit_label_noise(log_p, labels)
    wrong = model.probability_wrong(log_p, labels)
    says, (count, C) = log_p.argmax(1), log_p.shape
    correct = int((says == labels).sum())
    chance = float(np.bincount(says, minlength=C) @ np.bincount(labels, minlength=C)) / count**2
    right = correct / count / (1 - model.rate)
    contradicted = f"{count - correct:,} of {count:,} labels"
    learned = model.learned is not None
    return _Judgment(predictions, wrong, float(wrong.sum()), right, correct, count, chance, learned, contradicted)


def _judge_several(predictions: "Predictions") -> _Judgment:
    log_p, labels = predictions.log_probabilities, predictions.labels
    known, rows = labels >= 0, np.arange(len(labels))
    all_answers = _judge(replace(predictions, log_probabilities=log_p[known], labels=labels[known]))
    wrong, against = np.zeros(labels.shape), np.full(labels.shape, -np.inf)
    wrong[known], against[known] = all_answers.wrong, _against(all_answers.predictions)
    worst = np.lexsort((against, wrong), axis=1)[:, -1]
    of_worst = replace(
        predictions,
        log_probabilities=log_p[rows, worst],
        labels=np.maximum(labels[rows, worst], 0),
        label_of=worst,
    )
    samples = int((known & (log_p.argmax(2) != labels)).any(1).sum())
    contradicted = f"{all_answers.contradicted}, in {samples:,} of {len(labels):,} samples"
    return all_answers._replace(predictions=of_worst, wrong=1 - np.prod(1 - wrong, axis=1), contradicted=contradicted)


def _against(predictions: "Predictions") -> Array:
    """How much less log-probability the label has than the most probable one, (n,)."""
    log_p = predictions.log_probabilities
    found: Array = log_p.max(1) - log_p[np.arange(len(log_p)), predictions.labels]
    return found


def _leave_one_out_fall(found: SelfInfluence) -> Array:
    """How much the output of each sample would fall without it, (n,): one Newton step (Pregibon 1981)."""
    fall: Array = found.output_change / (1 - np.minimum(found.leverage, HIGHEST_LEVERAGE))
    return fall


def _basis(held_out: Array, corrected: bool) -> str:
    seen = int((held_out == 0).sum())
    if seen == len(held_out):
        return f"predictions of checkpoints trained on the sample{', corrected by leaving it out in closed form' * corrected}"
    basis = "predictions of checkpoints not trained on the sample"
    how = "corrected by leaving them out in closed form" if corrected else "taken as they are"
    return f"{basis} ({counted(seen, 'sample')} on which all were: {how})" if seen else basis


def _without_classes(checkpoints: Sequence[CheckpointFeatures], meaning: Meaning, fdr: float) -> Suspects:
    """Rank samples by how wrong the checkpoints that were not trained on them are about them; all checkpoints, where there are none."""
    unseen = held_out(checkpoints)
    found = [output_and_loss_weight(features.train) for features in checkpoints]
    errors = held_out_mean(np.stack([meaning.errors(*each) for each in found]).astype(np.float64), unseen)
    where = "checkpoints not trained on the sample" if unseen.any() else "checkpoints trained on the sample"
    basis = f"{meaning.error_name(found[0][1])} of {where}"
    numbers = predicted = None
    if meaning.number:
        numbers = found[0][0] + found[0][1]
        predicted = held_out_mean(np.stack([output for output, _ in found]).astype(np.float64), unseen)
    ranking = np.argsort(-errors, kind="stable")
    return Suspects(
        ranking,
        0,
        fdr,
        None,
        None,
        basis,
        errors,
        numbers=numbers,
        predicted=predicted,
        models=unseen.sum(0),
        other_scale=None
        if predicted is None or numbers is None
        else meaning.other_scale(predicted, numbers - predicted),
    )


def _named(names: Sequence[str] | None, number: int) -> str:
    return str(names[number]) if names is not None and number < len(names) else str(number)


def _who(count: int) -> str:
    return f"{counted(count, 'model')} not trained on it"


def _percent(share: float) -> str:
    if share < 0.005:
        return "< 1 %"
    return "> 99 %" if share > 0.995 else format_percent(share)
