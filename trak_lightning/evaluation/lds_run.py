"""Linear datamodeling score of a run, next to baselines. No torch."""

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from trak_lightning.errors import DataError
from trak_lightning.evaluation.figures import Bar, Intervals
from trak_lightning.evaluation.lds import bootstrap_both, bootstrap_mean, noise_ceiling, predict, spearman
from trak_lightning.evaluation.result import Result
from trak_lightning.evaluation.scored_run import ScoredRun
from trak_lightning.evaluation.settings import EvaluationSettings
from trak_lightning.retraining.outputs import Retraining, output_path, read_outputs
from trak_lightning.retraining.subsets import ENSEMBLE, SubsetPlan
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.base import BLOCK_BYTES, Array, Scorer
from trak_lightning.scoring.gradient_scorers import GradientDot
from trak_lightning.scoring.inverse import IllConditionedWarning
from trak_lightning.scoring.trak import Trak

FIXED_SEED = "fixed-seed"
"""Name of the result of protocol fixed_seed."""

FEWEST = 3
"""Of fewer retrained models, a bootstrap over models tells nothing: for scores that are random, two gave a 95 % interval without 0 in one
trial of three, and three or more in one of 75 or fewer."""


def outputs_folder(run: RunDirectory, target_split: str) -> Path:
    """Where outputs of retrained models on the targets of a split are kept; those of other targets are others."""
    return run.evaluation if target_split == "test" else run.evaluation / target_split


def models_folder(run: RunDirectory, fraction: float, target_split: str = "test") -> Path:
    """Where outputs of models trained on random subsets are kept, a folder for each size of subset."""
    return outputs_folder(run, target_split) / (
        "models" if fraction == EvaluationSettings.fraction else f"models-{fraction:g}"
    )


def fixed_seed_folder(run: RunDirectory, removed: float, target_split: str = "test") -> Path:
    """Where outputs of models trained at one seed without random samples are kept, a folder for each number of these."""
    return outputs_folder(run, target_split) / f"models-fixed_seed-{removed:g}"


def fixed_seed_retrainings(plan: SubsetPlan, folder: Path, settings: EvaluationSettings) -> list[Retraining]:
    """Repeat one training, with the seed of the first checkpoint that `trak train` makes, without the samples outside a subset.

    Raises:
        DataError: the share to remove is less than half a sample.
    """
    n = plan.num_samples
    if len(plan.subset(0)) == n:
        raise DataError(
            f"evaluation.removed = {settings.removed:g} of {n} training samples is less than one sample. Remove at least {1 / n:.2g}."
        )
    seed = SubsetPlan(ENSEMBLE, n, 1.0, plan.seed).training_seed(0)
    return [
        Retraining(output_path(folder, model), plan.subset(model), seed, keep_batches=True)
        for model in range(settings.models)
    ]


def lds_retrainings(plan: SubsetPlan, folder: Path, settings: EvaluationSettings) -> list[Retraining]:
    """Models on random subsets, and again, with other seeds, the first `settings.ceiling` of them."""
    subsets = [plan.subset(member) for member in range(settings.models)]
    once = [Retraining(output_path(folder, j), subset, plan.training_seed(j)) for j, subset in enumerate(subsets)]
    again = [
        Retraining(output_path(folder / "again", j), subset, plan.training_seed(settings.models + j))
        for j, subset in enumerate(subsets[: settings.ceiling])
    ]
    return once + again


def lds_result(scored: ScoredRun, folder: Path, settings: EvaluationSettings, compare: dict[str, Scorer]) -> Result:
    """LDS of the scores, of λ = 0, of the scorers to compare, of the gradient dot product and of random scores, by the outputs of
    the retrained models in `folder`.

    Raises:
        IncompleteRunError: models have not been retrained.
    """
    n, m = scored.num_train, scored.num_targets
    subsets, outputs = read_outputs(folder, settings.models, num_samples=n, num_targets=m)
    ceiling = None
    if settings.ceiling:
        again = read_outputs(folder / "again", settings.ceiling, num_samples=n, num_targets=m)[1]
        ceiling = noise_ceiling(outputs[: settings.ceiling], again, seed=scored.seed)
    found = _judged(scored, subsets, outputs, compare)
    rows = [(name, f"{mean:.3f}", _interval(*ends[:2]), _interval(*ends[2:])) for name, (mean, *ends) in found.items()]
    if ceiling is not None:
        ends = ceiling[1:] if settings.ceiling >= FEWEST else (float("nan"),) * 4
        rows.append(("noise ceiling", f"{ceiling[0]:.3f}", _interval(*ends[:2]), _interval(*ends[2:])))
    ours, *_, low, high = next(iter(found.values()))  # one interval alone is that over models too, which is the wider
    keys = ("lds", "low", "high", "low_models", "high_models")
    fixed = settings.protocol == "fixed_seed"
    how = (
        f"{settings.models} models repeated one training, with the same initialization and batches, each without another random "
        f"{settings.removed:.3g} of the training set"
        if fixed
        else f"{settings.models} models were retrained on random subsets of the training set"
    )
    return Result(
        FIXED_SEED if fixed else "lds",
        f"Linear datamodeling score{' at a fixed seed' if fixed else ''}: {settings.models} retrained models, {m} targets"
        + f"; {' and '.join(compare)} with default settings" * bool(compare),
        f"Do the scores predict retrained models? {how}. "
        f"For each of {m} targets, their outputs are compared with the sum of the scores of the examples that each of them was "
        "trained on. The linear datamodeling score is the mean rank correlation: 1 if the scores predict the order of the models "
        "exactly, 0 if they predict nothing. Bars are 95 % intervals over targets; the last column of the table is over targets "
        "and models.",
        f"LDS {ours:.3f} "
        + (f"[{low:.3f}, {high:.3f}] " if settings.models >= FEWEST else "")
        + f"over {settings.models} retrained models{' of one seed' if fixed else ''}"
        + f": too few to judge by, {FEWEST} are the fewest and 100 are sure" * (settings.models < FEWEST),
        ("scores", "LDS", "95 % interval", "over models too"),
        tuple(rows),
        {
            "num_models": settings.models,
            "num_targets": m,
            "scores": {
                name: {key: None if np.isnan(value) else value for key, value in zip(keys, values, strict=True)}
                for name, values in found.items()
            },
            "ceiling": None if ceiling is None else ceiling[0],
        },
        Intervals(tuple(Bar(name, *values[:3]) for name, values in found.items()), "linear datamodeling score")
        if settings.models >= FEWEST
        else None,
    )


def _judged(
    scored: ScoredRun, subsets: Array, outputs: Array, compare: dict[str, Scorer]
) -> dict[str, tuple[float, ...]]:
    """Name → LDS, its interval over targets, and that over targets and models."""
    found: dict[str, tuple[float, ...]] = {}
    with warnings.catch_warnings():
        # The ill-conditioned Gram matrix of a baseline is not the user's concern.
        warnings.simplefilter("ignore", IllConditionedWarning)
        for name, blocks in _candidates(scored, compare).items():
            predicted = predict(blocks, subsets)
            mean, *ends = (
                *bootstrap_mean(spearman(predicted, outputs), seed=scored.seed),
                *bootstrap_both(predicted, outputs, seed=scored.seed),
            )
            found[name] = (mean, *(ends if len(outputs) >= FEWEST else [float("nan")] * 4))
    return found


def _interval(low: float, high: float) -> str:
    return "too few models" if np.isnan(low) else f"{low:.3f} … {high:.3f}"


def _candidates(scored: ScoredRun, compare: dict[str, Scorer]) -> dict[str, Iterable[Array]]:
    """Name → consecutive rows of the (m, n) scores, lazily."""
    checkpoints, scores = scored.checkpoints, scored.scores
    found: dict[str, Iterable[Array]] = {scored.title: np.array_split(scores, max(1, scores.nbytes // BLOCK_BYTES))}
    if checkpoints:
        found["λ = 0, unweighted (paper)"] = Trak(regularization=0.0, weights="none").fit(checkpoints).blocks()
        found |= {name: other.fit(checkpoints).blocks() for name, other in compare.items()}
        found["gradient dot product"] = GradientDot().fit(checkpoints).blocks()
    return {**found, "random": _random(scored)}


def _random(scored: ScoredRun) -> Iterator[Array]:
    """Independent standard normal scores, row by row: a score that knows nothing."""
    for row in range(scored.num_targets):
        yield np.random.default_rng([scored.seed, row]).standard_normal((1, scored.num_train))
