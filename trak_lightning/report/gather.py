"""From a run directory to what its page shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from trak_lightning.errors import DataError
from trak_lightning.evaluation import figures
from trak_lightning.evaluation.result import read_result
from trak_lightning.report import duplicates
from trak_lightning.report.contents import Example, Fact, Figure, Report, Suspect, Target
from trak_lightning.report.samples import Samples, Shown
from trak_lightning.run.directory import RunDirectory, read_json
from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.scoring.scores import Scores
from trak_lightning.scoring.self_influence import held_out_probabilities, self_influence
from trak_lightning.scoring.system import System

EXAMPLES = 10
SUSPECTS = 40
TARGETS = 24


@dataclass(frozen=True)
class Sources:
    """All that a page is made from."""

    run: RunDirectory
    scores: Scores
    checkpoints: Sequence[CheckpointFeatures]
    train: Samples
    targets: Samples


def choose_targets(outputs: Array, count: int = TARGETS) -> list[int]:
    """Positions of the targets to show if none are named: two thirds are those with the smallest mean output, the model's
    mistakes and doubts; the others are spread evenly over the rest.

    Args:
        outputs: (m,).
    """
    order = np.argsort(outputs, kind="stable")
    worst = order[: max(1, count * 2 // 3)]
    rest = order[len(worst) :]
    spread = (
        rest[np.unique(np.linspace(0, len(rest) - 1, min(count - len(worst), len(rest))).astype(int))]
        if len(rest)
        else []
    )
    return [int(position) for position in (*worst, *spread)][:count]


def mean_outputs(checkpoints: Sequence[CheckpointFeatures]) -> Array:
    """f of every target, averaged over checkpoints: (m,)."""
    outputs: Array = np.mean([features.targets.column("output") for features in checkpoints], axis=0)
    return outputs


def require_fitting(sources: Sources, positions: Sequence[int]) -> None:
    """Refuse data that was not scored, and targets that are not there.

    Raises:
        DataError: names the length or the position.
    """
    m, n = sources.scores.shape
    for position in positions:
        if not 0 <= position < m:
            raise DataError(f"target {position} is out of range: {sources.scores.path} has targets 0 … {m - 1}")
    for samples, expected, which in ((sources.train, n, "training"), (sources.targets, m, "target")):
        if len(samples) != expected:
            raise DataError(
                f"the {which} data has {len(samples)} samples and the scores in {sources.scores.path} are of {expected}: it is "
                "not the data that was attributed"
            )


def gather(
    sources: Sources,
    positions: Sequence[int],
    *,
    title: str,
    facts: Sequence[Fact],
    probabilities: Array | None,
    logistic: bool,
    notes: Sequence[str],
) -> Report:
    """The page's contents.

    Args:
        positions: of the targets to show.
        probabilities: (len(positions), C) of the classes, if the task has any.
        logistic: whether sigmoid(f) is the probability of the label.
    """
    m, _ = sources.scores.shape
    suspects, held_out = _suspects(sources, logistic)
    groups = duplicates.exact(sources.train, sources.targets)
    pairs = duplicates.similar(sources.checkpoints[0].train)
    known = {(i, j) for group in groups or () for i in group.train for j in group.train}
    pairs = None if pairs is None else [pair for pair in pairs if (pair.first, pair.second) not in known]
    return Report(
        title=title,
        facts=(*facts, *_facts(sources)),
        targets=tuple(_targets(sources, positions, probabilities, logistic)),
        num_targets=m,
        suspects=suspects,
        held_out=held_out,
        evaluations=tuple(_evaluations(sources)),
        settings=tuple(_settings(sources)),
        groups=None if groups is None else tuple(groups),
        pairs=None if pairs is None else tuple(pairs),
        twins=_twins(sources, groups or [], pairs or []),
        notes=tuple(notes),
    )


def _targets(sources: Sources, positions: Sequence[int], probabilities: Array | None, logistic: bool) -> list[Target]:
    outputs = mean_outputs(sources.checkpoints)
    of_label = np.mean([expit(f.targets.column("output")) for f in sources.checkpoints], axis=0) if logistic else None
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


def _suspects(sources: Sources, logistic: bool) -> tuple[tuple[Suspect, ...], bool]:
    request = sources.scores.settings.get("request", {}).get("scorer", {})
    found = self_influence(sources.checkpoints, request.get("regularization", "auto"), request.get("weights", "auto"))
    probability, held_out = held_out_probabilities(sources.checkpoints) if logistic else (None, False)
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


def _evaluations(sources: Sources) -> list[Figure]:
    scoring = sources.scores.settings.get("scoring", {})
    found = []
    for path in sorted(sources.run.evaluation.glob("lds-*.json")):
        result = read_json(path)
        rows = [(row["name"], row["lds"], row["low"], row["high"]) for row in result["rows"]]
        title = f"Do the scores predict retrained models? ({path.stem.removeprefix('lds-')})"
        with figures.intervals(path.stem, rows, "linear datamodeling score") as figure:
            svg = figures.inline_svg(path.stem, figure, title)
        text = (
            f"{result['num_models']} models were retrained on random subsets of the training set. For each of "
            f"{result['num_targets']} targets, what they say is compared with the sum of the scores of the examples that each was "
            "trained on: the linear datamodeling score is the mean rank correlation, 1 if the scores predict the order of the "
            "models exactly and 0 if they say nothing. Bars are 95 % intervals."
        )
        table = tuple((name, f"{value:.3f}", f"{low:.3f} … {high:.3f}") for name, value, low, high in rows)
        found.append(Figure(title, text, svg, ("scores", "LDS", "95 % interval"), table))
    for path in sorted(sources.run.evaluation.glob("*.json")):
        if not path.name.startswith("lds-"):
            found.append(_evaluated(path))
    if curve := scoring.get("curve"):
        values, traces = scoring.get("regularization", []), scoring.get("trace", [])
        chosen = values[0] / traces[0] if values and traces and traces[0] and values[0] else None
        text = (
            "Scores made from the other checkpoints predict what each checkpoint says of training examples, since the subset "
            "that it was trained on is known. This is how well they do it for each strength of the regularisation λ."
        )
        svg = figures.calibration_curve(curve["relative"], curve["lds"], chosen)
        found.append(Figure("How was λ chosen?", text, svg))
    if scoring.get("weights") and scoring.get("regularization"):
        found.append(_spectrum(sources, scoring["weights"], float(scoring["regularization"][0])))
    return found


def _evaluated(path: Path) -> Figure:
    result = read_result(path)
    svg = ""
    if result.series:
        with figures.lines(path.stem, result) as figure:
            svg = figures.inline_svg(path.stem, figure, result.title)
    return Figure(result.title, result.text, svg, result.columns, result.rows)


def _spectrum(sources: Sources, weights: str, regularization: float) -> Figure:
    values = System(sources.checkpoints[0], weights).spectrum()
    positive = values[values > 0]
    dimension = float((positive / (positive + regularization)).sum())
    text = (
        f"The eigenvalues of the Gram matrix ΦᵀWΦ of the first checkpoint. Directions above the dashed line are used, those below "
        f"are damped as noise. Effective dimension Σ s/(s + λ): {dimension:.0f} of {len(values):,}. If it comes near k or "
        "the number of training examples, a larger k or λ may give better scores."
    )
    return Figure("How many directions matter?", text, figures.spectrum(values, regularization))


def _twins(sources: Sources, groups: Sequence[duplicates.Group], pairs: Sequence[duplicates.Pair]) -> dict[str, Shown]:
    train = {i for group in groups[:50] for i in group.train} | {i for pair in pairs for i in (pair.first, pair.second)}
    targets = {i for group in groups[:50] for i in group.targets}
    return {f"train-{i}": sources.train.show(i) for i in sorted(train)} | {
        f"target-{i}": sources.targets.show(i) for i in sorted(targets)
    }
