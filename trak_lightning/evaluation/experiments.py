"""All evaluations of a run, each on request only. No torch."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trak_lightning import registry
from trak_lightning.errors import IncompatibleRunError
from trak_lightning.evaluation.agreement import agreement, require_several
from trak_lightning.evaluation.lds_run import (
    FIXED_SEED,
    fixed_seed_folder,
    fixed_seed_retrainings,
    lds_result,
    lds_retrainings,
    models_folder,
    outputs_folder,
)
from trak_lightning.evaluation.leave_one_out import choose_samples, leave_one_out
from trak_lightning.evaluation.mislabeled import known_positions, mislabeled, suspicions
from trak_lightning.evaluation.removal import brittleness, choose_targets, counterfactual, rankings
from trak_lightning.evaluation.result import Result, read_result
from trak_lightning.evaluation.scored_run import ScoredRun
from trak_lightning.evaluation.settings import EvaluationSettings
from trak_lightning.retraining.outputs import Retrain, Retrained
from trak_lightning.retraining.subsets import SINGLE, SubsetPlan, recorded_plan
from trak_lightning.scoring.gradient_scorers import GradientDot
from trak_lightning.seeds import fingerprint


@dataclass(frozen=True)
class Models:
    """Retrained models that an experiment uses: the folder of their outputs, and the plan that they are trained by."""

    folder: Path
    plan: SubsetPlan


@dataclass(frozen=True)
class Experiment:
    """An evaluation that was asked for."""

    kind: str
    asked: dict[str, Any]
    """What determines the result, in addition to the scores and the models. JSON."""
    compute: Callable[[], Result]
    models: Models | None = None


def evaluate(
    scored: ScoredRun, settings: EvaluationSettings, retrain: Retrain, datamodule: Callable[[], Any] = lambda: None
) -> Iterator[tuple[Result, bool]]:
    """Yield each result that `settings` ask for, and whether it was computed now or read from the run directory.

    Everything that can be checked is checked before the first model is retrained.

    Args:
        scored: the scores to evaluate.
        settings: which evaluations.
        retrain: trains missing models and stores their outputs.
        datamodule: returns the DataModule; called only if it is asked which training samples are mislabeled.

    Raises:
        IncompleteRunError: features are missing.
        IncompatibleRunError: stored models were trained with other settings.
        StaleRowsError: their outputs are those of other samples, or of another function, than the stored rows.
        DataError: an evaluation is impossible for this run; names the setting.
        PluginError: a scorer to compare with is unknown.
    """
    for experiment in experiments(scored, settings, retrain, datamodule):
        if experiment.models is not None:
            experiment.models.plan.require_same_rows(experiment.models.folder)
            retrain(experiment.models.plan, experiment.models.folder, ())
        path = scored.run.evaluation / f"{experiment.kind}-{scored.target_split}.json"
        stored = _stored(path)
        if stored is not None and stored.request == _request(scored, experiment):
            yield stored, False
            continue
        result = experiment.compute()
        result = replace(result, request=_request(scored, experiment))
        result.write(path)
        yield result, True


def require_possible(settings: EvaluationSettings, datamodule: Any, *, num_train: int, num_checkpoints: int) -> None:
    """Check what can be checked before anything is trained.

    Raises:
        DataError: mislabeled samples are unknown, or there is one checkpoint to compare with itself.
        PluginError: a scorer to compare with is unknown.
    """
    for name in settings.compare:
        registry.create("scorers", name)
    if settings.mislabeled:
        known_positions(settings.mislabeled, datamodule, num_train)
    if settings.agreement:
        require_several(num_checkpoints)


def experiments(
    scored: ScoredRun, settings: EvaluationSettings, retrain: Retrain, datamodule: Callable[[], Any]
) -> list[Experiment]:
    """Prepare the evaluations that `settings` ask for; arguments and exceptions as for `evaluate`."""
    n, m, seed = scored.num_train, scored.num_targets, scored.seed
    single = Models(
        outputs_folder(scored.run, scored.target_split) / "retrained",
        SubsetPlan(SINGLE, n, 1.0, seed, rows=scored.rows),
    )
    retrained = Retrained(single.folder, single.plan, m, settings.repeats, retrain)
    found = [_lds(scored, settings, retrain)] if settings.models else []
    for kind, count in (("counterfactual", settings.counterfactual), ("brittleness", settings.brittleness)):
        if count:
            found.append(_removal(kind, scored, count, retrained, single))
    if settings.leave_one_out:
        found.append(_leave_one_out(scored, settings.leave_one_out, retrained, single))
    if settings.mislabeled:
        found.append(_mislabeled(scored, settings.mislabeled, datamodule))
    if settings.agreement:
        require_several(len(scored.checkpoints))
        found.append(Experiment("agreement", {}, lambda: agreement(scored.scorer, scored.checkpoints)))
    return found


def _lds(scored: ScoredRun, settings: EvaluationSettings, retrain: Retrain) -> Experiment:
    n, seed = scored.num_train, scored.seed
    if settings.protocol == "fixed_seed":
        kind, asked = FIXED_SEED, ["models", "removed", "compare"]
        plan = SubsetPlan("fixed_seed", n, 1 - settings.removed, seed, rows=scored.rows)
        folder = fixed_seed_folder(scored.run, settings.removed, scored.target_split)
        retrainings = fixed_seed_retrainings(plan, folder, settings)
    else:
        kind, asked = "lds", ["models", "fraction", "compare", "ceiling"]
        plan = SubsetPlan("evaluation", n, settings.fraction, seed, rows=scored.rows)
        folder = models_folder(scored.run, settings.fraction, scored.target_split)
        retrainings = lds_retrainings(plan, folder, settings)
    compare = {name: registry.create("scorers", name) for name in settings.compare}

    def compute() -> Result:
        retrain(plan, folder, retrainings)
        return lds_result(scored, folder, settings, compare)

    return Experiment(kind, {name: getattr(settings, name) for name in asked}, compute, Models(folder, plan))


def _removal(kind: str, scored: ScoredRun, count: int, retrained: Retrained, models: Models) -> Experiment:
    targets = choose_targets(kind, scored.outputs, scored.run.read().meaning, count)

    def compute() -> Result:
        ordered = rankings(np.asarray(scored.scores[targets]), scored.gradient_similarity(targets), scored.seed)
        if kind == "brittleness":
            return brittleness(ordered, targets, retrained)
        return counterfactual(ordered, targets, retrained, seed=scored.seed)

    return Experiment(kind, {"size": count, "repeats": retrained.repeats}, compute, models)


def _leave_one_out(scored: ScoredRun, count: int, retrained: Retrained, models: Models) -> Experiment:
    def compute() -> Result:
        scores = np.asarray(scored.scores)
        samples = choose_samples(scores, count)
        dots = np.concatenate([block[:, samples] for block in GradientDot().fit(scored.checkpoints).blocks()])
        noise = np.random.default_rng(scored.seed).standard_normal(dots.shape)
        compared = {"scores": scores[:, samples], "gradient dot product": dots, "random": noise}
        return leave_one_out(compared, samples, retrained, seed=scored.seed)

    return Experiment("leave-one-out", {"size": count, "repeats": retrained.repeats}, compute, models)


def _mislabeled(scored: ScoredRun, source: str, datamodule: Callable[[], Any]) -> Experiment:
    positions = known_positions(source, datamodule() if source == "data" else None, scored.num_train)

    def compute() -> Result:
        return mislabeled(suspicions(scored), positions)

    return Experiment("mislabeled", {"positions": fingerprint(positions.tolist())}, compute)


def _request(scored: ScoredRun, experiment: Experiment) -> dict[str, Any]:
    request = {**scored.made_from, **experiment.asked, "seed": scored.seed}
    if experiment.models is not None:
        # The folder may have been deleted since, and other models trained: their results are others.
        plan = recorded_plan(experiment.models.folder)
        # As text, since settings may be infinite.
        request["trained"] = None if plan is None else fingerprint(json.dumps(plan, sort_keys=True))
    return request


def _stored(path: Path) -> Result | None:
    """The result of an earlier call; None if there is none, or one of an earlier version."""
    if not path.exists():
        return None
    try:
        return read_result(path)
    except IncompatibleRunError:
        return None
