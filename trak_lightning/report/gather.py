"""Gather from a run directory what its page shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trak_lightning.errors import DataError
from trak_lightning.report import duplicates
from trak_lightning.report.contents import Example, Fact, Report, Suspect, Target
from trak_lightning.report.samples import Samples, Shown
from trak_lightning.report.trust import evaluated, numerics, read_results
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.meaning import Meaning
from trak_lightning.scoring.base import Array, CheckpointFeatures, evenly
from trak_lightning.scoring.scores import Scores
from trak_lightning.scoring.self_influence import columns, held_out_probabilities, self_influence

EXAMPLES = 10
SUSPECTS = 40
TARGETS = 24


@dataclass(frozen=True)
class Sources:
    """Everything that a page is made from."""

    run: RunDirectory
    scores: Scores
    checkpoints: Sequence[CheckpointFeatures]
    train: Samples
    targets: Samples


def choose_targets(outputs: Array, count: int = TARGETS) -> list[int]:
    """Choose which targets to show if none are named: two thirds have the smallest mean output, the model's mistakes and
    doubts; the others are spread evenly over the rest.

    Args:
        outputs: (m,).
    """
    order = np.argsort(outputs, kind="stable")
    worst = order[: max(1, count * 2 // 3)]
    rest = order[len(worst) :]
    spread = rest[evenly(len(rest), count - len(worst))]
    return [int(position) for position in (*worst, *spread)][:count]


def mean_outputs(checkpoints: Sequence[CheckpointFeatures]) -> Array:
    """Output f of each target, averaged over checkpoints: (m,)."""
    outputs: Array = np.mean([features.targets.column("output") for features in checkpoints], axis=0)
    return outputs


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
    positions: Sequence[int],
    *,
    title: str,
    facts: Sequence[Fact],
    probabilities: Array | None,
    meaning: Meaning,
    notes: Sequence[str],
) -> Report:
    """Gather the contents of the page.

    Args:
        sources: what the page is made from.
        positions: positions of the targets to show.
        title: title of the page.
        facts: facts about the model, shown first.
        probabilities: class probabilities of these targets, (len(positions), C), if the task has classes.
        meaning: what the output f means.
        notes: what could not be shown, and why.
    """
    m, _ = sources.scores.shape
    suspects, held_out = _suspects(sources, meaning)
    groups = duplicates.exact(sources.train, sources.targets)
    pairs = duplicates.similar(sources.checkpoints[0].train)
    known = {(i, j) for group in groups or () for i in group.train for j in group.train}
    pairs = None if pairs is None else [pair for pair in pairs if (pair.first, pair.second) not in known]
    results, outdated = read_results(sources.run)
    panels = [evaluated(name, result) for name, result in results]
    panels += numerics(sources.scores.settings.get("scoring", {}), sources.checkpoints)
    return Report(
        title=title,
        facts=(*facts, *_facts(sources)),
        targets=tuple(_targets(sources, positions, probabilities, meaning)),
        num_targets=m,
        suspects=suspects,
        held_out=held_out,
        evaluations=tuple(panels),
        settings=tuple(_settings(sources)),
        groups=None if groups is None else tuple(groups),
        pairs=None if pairs is None else tuple(pairs),
        twins=_twins(sources, groups or [], pairs or []),
        notes=(*notes, *outdated),
    )


def _targets(sources: Sources, positions: Sequence[int], probabilities: Array | None, meaning: Meaning) -> list[Target]:
    outputs = mean_outputs(sources.checkpoints)
    found_probabilities = [meaning.probabilities(*columns(features.targets)) for features in sources.checkpoints]
    of_label = None if meaning.probability is None else np.mean(found_probabilities, axis=0)  # type: ignore[arg-type]
    found = []
    k = min(EXAMPLES, sources.scores.shape[1])
    for place, position in enumerate(positions):
        shown = sources.targets.show(position)
        predicted = None if probabilities is None else sources.targets.class_name(int(probabilities[place].argmax()))
        rankings = (sources.scores.top(k, target=position), sources.scores.bottom(k, target=position))
        helpful, harmful = (
            tuple(
                Example(
                    int(index),
                    sources.train.show(int(index)),
                    float(value),
                    None if ranking.spread is None or not np.isfinite(ranking.spread[i]) else float(ranking.spread[i]),
                )
                for i, (index, value) in enumerate(zip(ranking.indices, ranking.values, strict=True))
            )
            for ranking in rankings
        )
        found.append(
            Target(
                index=position,
                shown=shown,
                output=float(outputs[position]),
                probability=None if of_label is None else float(of_label[position]),
                prediction=predicted,
                correct=None if predicted is None or shown.label is None else predicted == shown.label,
                helpful=helpful,
                harmful=harmful,
            )
        )
    return found


def _suspects(sources: Sources, meaning: Meaning) -> tuple[tuple[Suspect, ...], bool]:
    request = sources.scores.settings.get("request", {}).get("scorer", {})
    found = self_influence(sources.checkpoints, request.get("regularization", "auto"), request.get("weights", "auto"))
    probability, held_out = held_out_probabilities(sources.checkpoints, meaning)
    order = np.argsort(-found.self_influence, kind="stable")[:SUSPECTS]
    suspects = tuple(
        Suspect(
            int(index),
            sources.train.show(int(index)),
            float(found.self_influence[index]),
            float(found.leverage[index]),
            None if probability is None else float(probability[index]),
        )
        for index in order
    )
    return suspects, held_out


def _facts(sources: Sources) -> list[Fact]:
    m, n = sources.scores.shape
    spec = sources.checkpoints[0].train.spec
    rule = sources.scores.settings.get("scoring", {}).get("rule")
    facts = [
        Fact("training examples", f"{n:,}"),
        Fact("targets", f"{m:,}"),
        Fact("checkpoints", str(len(sources.checkpoints))),
        Fact("projected to", f"k = {spec.dim:,}"),
    ]
    if rule:
        facts.append(Fact("λ", rule))
    return facts


def _settings(sources: Sources) -> list[Fact]:
    spec = sources.checkpoints[0].train.spec
    record = sources.run.read()
    scorer = sources.scores.settings.get("request", {}).get("scorer", {})
    facts = [Fact("run directory", str(sources.run.path)), Fact("scores", sources.scores.path.name)]
    facts += [
        Fact(name, _brief(spec.fingerprint[name]))
        for name in ("task", "projector", "precision")
        if name in spec.fingerprint
    ]
    facts += [Fact("scorer", _brief(scorer)), Fact("seed", str(spec.fingerprint.get("seed", "")))]
    facts += [Fact("checkpoint", f"{each.id} from {each.source}") for each in record.checkpoints]
    facts += [Fact("version", f"{name} {value}") for name, value in record.versions.items()]
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
