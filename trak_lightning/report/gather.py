"""Gather from a run directory what its page shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from trak_lightning.decisions.outcome import Outcome, said
from trak_lightning.errors import DataError
from trak_lightning.report import duplicates
from trak_lightning.report.accuracy import headline
from trak_lightning.report.contents import Example, Headline, Report, Target
from trak_lightning.report.links import effects
from trak_lightning.report.samples import Samples
from trak_lightning.report.shown import Shown
from trak_lightning.report.suspicion import Suspicion
from trak_lightning.report.tokens import TokenMarks
from trak_lightning.report.trust import evaluated, numerics, read_results, trusted
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.formatting import format_significant
from trak_lightning.scoring.base import Array, CheckpointFeatures, evenly
from trak_lightning.scoring.ranking import Ranking
from trak_lightning.scoring.scores import Scores
from trak_lightning.scoring.token_scores import TokenScores

EXAMPLES = 10
TARGETS = 24
MARKED = 3
"""Number of examples on either side of a target whose tokens are marked."""

_PARALLEL = "Near duplicates are not listed: {:,} pairs of training examples have nearly parallel gradients, which singles out none."

TokenScorer: TypeAlias = Callable[[Sequence[tuple[int, int]]], Sequence[TokenScores]]
"""Splits the scores of pairs (target, training sample) by tokens."""


@dataclass(frozen=True)
class Sources:
    """Everything that a page is made from."""

    run: RunDirectory
    scores: Scores
    checkpoints: Sequence[CheckpointFeatures]
    train: Samples
    targets: Samples
    token_scores: TokenScorer | None = None
    """None marks no tokens."""


def choose_targets(errors: Array, count: int = TARGETS) -> list[int]:
    """Choose which targets to show, by their `errors` (m,): two thirds have the largest; the others are spread evenly over the
    rest."""
    order = np.argsort(-errors, kind="stable")
    worst = order[: max(1, count * 2 // 3)]
    rest = order[len(worst) :]
    spread = rest[evenly(len(rest), count - len(worst))]
    return [int(position) for position in (*worst, *spread)][:count]


def require_fitting(sources: Sources, positions: Sequence[int]) -> None:
    """Check that the data is what was scored, and that the targets exist.

    Raises:
        DataError: names the length or position that is wrong.
    """
    m, n = sources.scores.shape
    for position in positions:
        if not 0 <= position < m:
            raise DataError(f"target {position} is out of range: {sources.scores.path} has targets 0 … {m - 1}")
    for samples, expected, which in ((sources.train, n, "training"), (sources.targets, m, "target")):
        if len(samples) != expected:
            raise DataError(
                f"the {which} data has {len(samples)} samples and the scores in {sources.scores.path} are of {expected}: it is "
                "not the data that was attributed. Use the data that the run was made with."
            )


def gather(
    sources: Sources,
    outcome: Outcome,
    suspicion: Suspicion,
    positions: Sequence[int],
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str],
    remarks: Mapping[str, Sequence[str]],
) -> Report:
    """Gather the contents of the page, which shows the targets at `positions`; `notes` and `remarks` as in `Report`."""
    groups = duplicates.exact(sources.train, sources.targets)
    found = duplicates.similar(sources.checkpoints[0].train)
    known = {(i, j) for group in groups or () for i in group.train for j in group.train}
    pairs = None if found is None else [pair for pair in found.pairs if (pair.first, pair.second) not in known]
    parallel: list[str] = []
    if found is not None and found.number > len(sources.train):
        pairs, parallel = None, [_PARALLEL.format(found.number)]
    results, outdated = read_results(sources.run)
    trust = trusted(sources.run, sources.scores)
    marks = _token_marks(sources, positions)
    targets = [_target(sources, outcome, position, marks) for position in positions]
    examples = {each.index for target in targets for each in (*target.helpful, *target.harmful)}
    shown = examples | {suspect.index for suspect in suspicion.suspects}
    return Report(
        title=title,
        headlines=(
            headline(outcome),
            suspicion.headline,
            *_duplicated(groups or []),
            trust.headline,
        ),
        meaning=outcome.meaning,
        targets=tuple(targets),
        num_targets=sources.scores.shape[0],
        num_checkpoints=len(sources.checkpoints),
        suspects=suspicion.suspects,
        suspicion=suspicion.text,
        evaluations=tuple(evaluated(name, result) for name, result in results),
        expert=tuple(numerics(sources.scores.settings.get("scoring", {}), sources.checkpoints)),
        settings=(*facts, *_facts(sources), *_settings(sources)),
        groups=None if groups is None else tuple(groups),
        pairs=None if pairs is None else tuple(pairs),
        twins=_twins(sources, groups or [], pairs or []),
        effects=effects(sources.scores, shown, sources.targets.label),
        trust=trust.text,
        notes=tuple(notes),
        remarks={name: tuple(said) for name, said in {**remarks, "duplicates": parallel, "trust": outdated}.items()},
    )


def _token_marks(sources: Sources, positions: Sequence[int]) -> Mapping[tuple[int, int], TokenMarks]:
    """Mark the tokens of the first examples of each target, on either side."""
    if sources.token_scores is None:
        return {}
    pairs = [
        (position, int(index))
        for position in positions
        for side in sources.scores.sides(min(MARKED, sources.scores.shape[1]), position)
        for index in side.indices
    ]
    return {
        (each.target, each.example): TokenMarks.of(
            each,
            sources.train.token_texts(each.example, each.example_positions),
            sources.targets.token_texts(each.target, each.target_positions),
        )
        for each in sources.token_scores(pairs)
    }


def _target(sources: Sources, outcome: Outcome, position: int, marks: Mapping[tuple[int, int], TokenMarks]) -> Target:
    k, shown = min(EXAMPLES, sources.scores.shape[1]), sources.targets.show(position)
    meaning, output, residual = outcome.meaning, float(outcome.output[position]), float(outcome.residual[position])
    label = format_significant(output + residual) if meaning.number else shown.label
    facts = meaning.facts(output, None if outcome.probability is None else float(outcome.probability[position]))
    if not outcome.counted[position]:
        facts = [("labels", "none counts: the output, its gradient and all scores are 0")]
    if (predicted := outcome.predicted.get(position)) is not None:
        facts[:0] = said(predicted, sources.targets.class_name)
    raises, lowers = meaning.raises, meaning.lowers
    if meaning.number:
        near, away = "towards the label", "away from the label"
        raises, lowers = (near, away) if residual > 0 else (away, near)
    helpful, harmful = (
        _examples(sources, position, side, marks, numbers=meaning.number) for side in sources.scores.sides(k, position)
    )
    return Target(
        index=position,
        shown=shown,
        label=label,
        facts=tuple(facts),
        error=float(outcome.error[position]),
        correct=outcome.correct(position),
        raises=raises,
        lowers=lowers,
        helpful=helpful,
        harmful=harmful,
    )


def _examples(
    sources: Sources, target: int, ranking: Ranking, marks: Mapping[tuple[int, int], TokenMarks], *, numbers: bool
) -> tuple[Example, ...]:
    """`numbers`: labels are numbers, to be compared with that of the target."""

    def show(index: int) -> Shown:
        shown = sources.train.show(index)
        return replace(shown, label=format_significant(shown.label)) if numbers and shown.label else shown

    spreads = [None] * len(ranking.indices) if ranking.spread is None else ranking.spread
    return tuple(
        Example(
            int(index),
            show(int(index)),
            float(value),
            None if spread is None or not np.isfinite(spread) else float(spread),
            marks.get((target, int(index))),
        )
        for index, value, spread in zip(ranking.indices, ranking.values, spreads, strict=True)
    )


def _duplicated(groups: Sequence[duplicates.Group]) -> list[Headline]:
    leaked = sum(bool(group.targets) for group in groups)
    conflicting = sum(group.conflicting for group in groups)
    found = []
    for count, what in (
        (leaked, "in the training set and among the targets."),
        (conflicting, "there twice, with different labels."),
    ):
        if count:
            found.append(Headline(f"{count:,}", f"{'sample is' if count == 1 else 'samples are'} {what}", "duplicates"))
    return found


def _facts(sources: Sources) -> list[tuple[str, str]]:
    m, n = sources.scores.shape
    spec = sources.checkpoints[0].train.spec
    scoring = sources.scores.settings.get("scoring", {})
    name = "λ" if "regularization" in scoring else "scores"  # which were made elsewhere
    facts = [
        ("data", f"{n:,} training examples, {m:,} targets"),
        ("checkpoints", f"{len(sources.checkpoints)}, with k = {spec.dim:,} features of each example"),
    ]
    return facts + ([(name, scoring["rule"])] if "rule" in scoring else [])


def _settings(sources: Sources) -> list[tuple[str, str]]:
    spec = sources.checkpoints[0].train.spec
    record = sources.run.read()
    scorer = sources.scores.settings.get("request", {}).get("scorer", {})
    facts = [("run directory", str(sources.run.path)), ("scores", sources.scores.path.name)]
    facts += [
        (name, _brief(spec.fingerprint[name]))
        for name in ("task", "projector", "precision")
        if name in spec.fingerprint
    ]
    facts += [("scorer", _brief(scorer)), ("seed", str(spec.fingerprint.get("seed", "")))]
    facts += [("checkpoint", f"{each.id} from {each.source}") for each in record.checkpoints]
    facts += [("version", f"{name} {value}") for name, value in record.versions.items()]
    return facts


def _brief(state: Any) -> str:
    if not isinstance(state, dict):
        return str(state)
    name = str(state.get("class", "")).rpartition(".")[2]
    options = ", ".join(f"{key} = {value}" for key, value in state.items() if key != "class")
    return f"{name}: {options}" if name and options else name or options


def _twins(sources: Sources, groups: Sequence[duplicates.Group], pairs: Sequence[duplicates.Pair]) -> dict[str, Shown]:
    train = {i for group in groups[:50] for i in group.train} | {i for pair in pairs for i in (pair.first, pair.second)}
    targets = {i for group in groups[:50] for i in group.targets}
    return {f"train-{i}": sources.train.show(i) for i in sorted(train)} | {
        f"target-{i}": sources.targets.show(i) for i in sorted(targets)
    }
