"""The linear datamodeling score of a run, beside baselines. No torch."""

import inspect
import json
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trak_lightning import registry
from trak_lightning.evaluation import figures
from trak_lightning.evaluation.baselines import Random
from trak_lightning.evaluation.lds import bootstrap_both, bootstrap_mean, noise_ceiling, predict, spearman
from trak_lightning.retraining.outputs import read_outputs
from trak_lightning.retraining.settings import EvaluationSettings
from trak_lightning.run.atomic import atomic_write
from trak_lightning.run.directory import RunDirectory, read_json
from trak_lightning.scoring.base import BLOCK_BYTES, Array, Scorer
from trak_lightning.scoring.gradient_scorers import GradientDot
from trak_lightning.scoring.inverse import IllConditionedWarning
from trak_lightning.scoring.score_run import load_features, made_from, score_run
from trak_lightning.scoring.trak import Trak
from trak_lightning.stores.base import FeatureStore


@dataclass(frozen=True)
class Row:
    """The linear datamodeling score of one kind of scores: mean over targets, and its 95 % bootstrap intervals."""

    name: str
    lds: float
    low: float
    """Ends of the interval over targets, for these retrained models."""
    high: float
    low_models: float
    """Ends of the interval over targets and retrained models."""
    high_models: float


@dataclass(frozen=True)
class Evaluation:
    """``evaluation/lds-<targets>.json``. The first row is that of the scorer evaluated, the others are baselines."""

    request: dict[str, Any]
    num_models: int
    num_targets: int
    rows: tuple[Row, ...]
    ceiling: float | None = None
    """LDS of a prediction without error, given the noise of training; None if no model was trained twice."""

    def headline(self) -> str:
        """One line."""
        ours = self.rows[0]
        return f"LDS {ours.lds:.3f} [{ours.low:.3f}, {ours.high:.3f}] over {self.num_models} retrained models"

    def print(self) -> None:
        """A table on standard output."""
        from rich.console import Console
        from rich.table import Table

        table = Table(
            title=f"Linear datamodeling score: {self.num_models} retrained models, {self.num_targets} targets",
            title_justify="left",
        )
        table.add_column("scores")
        table.add_column("LDS", justify="right")
        table.add_column("95 % interval", justify="right")
        table.add_column("over models too", justify="right")
        for row in self.rows:
            table.add_row(
                row.name,
                f"{row.lds:.3f}",
                f"{row.low:.3f} … {row.high:.3f}",
                f"{row.low_models:.3f} … {row.high_models:.3f}",
            )
        if self.ceiling is not None:
            table.add_row("noise ceiling", f"{self.ceiling:.3f}", "", "")
        Console().print(table)


def evaluate_run(
    run: RunDirectory,
    store: FeatureStore,
    scorer: Scorer,
    settings: EvaluationSettings,
    *,
    targets: str,
    train: str = "train",
    seed: int = 0,
) -> tuple[Evaluation, bool]:
    """LDS of `scorer`, of λ = 0, of the gradient dot product and of random scores, on the outputs of retrained models.

    Returns:
        The evaluation, and whether it was computed now; one of the same features, settings and models is read.

    Raises:
        IncompleteRunError: features or retrained models are missing.
    """
    checkpoints = load_features(run, store, targets=targets, train=train)
    request = {
        **made_from(scorer, checkpoints),
        "settings": {name: getattr(settings, name) for name in ("models", "fraction", "compare", "ceiling")},
        "seed": seed,
    }
    path = run.evaluation / f"lds-{targets}.json"
    if path.exists():
        found = read_json(path)
        if found.get("request") == request:
            return Evaluation(**{**found, "rows": tuple(Row(**row) for row in found["rows"])}), False
    sizes = {
        "num_samples": checkpoints[0].train.spec.num_samples,
        "num_targets": checkpoints[0].targets.spec.num_samples,
    }
    subsets, outputs = read_outputs(models_folder(run, settings.fraction), settings.models, **sizes)
    ceiling = None
    if settings.ceiling:
        again = read_outputs(models_folder(run, settings.fraction) / "again", settings.ceiling, **sizes)[1]
        ceiling = noise_ceiling(outputs[: settings.ceiling], again)
    scores, _ = score_run(run, store, scorer, targets=targets, train=train)
    compared = {name: registry.create("scorers", name) for name in settings.compare}
    candidates: dict[str, Iterable[Array]] = {
        _describe(scorer): np.array_split(scores.values, max(1, scores.values.nbytes // BLOCK_BYTES)),
        "λ = 0, unweighted (paper)": Trak(regularization=0.0, weights="none").fit(checkpoints).blocks(),
        **{name: other.fit(checkpoints).blocks() for name, other in compared.items()},
        "gradient dot product": GradientDot().fit(checkpoints).blocks(),
        "random": Random(seed=seed).fit(checkpoints).blocks(),
    }
    with warnings.catch_warnings():
        # A baseline's ill-conditioned Gram matrix is its own affair.
        warnings.simplefilter("ignore", IllConditionedWarning)
        rows = tuple(_row(name, predict(blocks, subsets), outputs, seed) for name, blocks in candidates.items())
    evaluation = Evaluation(request, len(outputs), outputs.shape[1], rows, ceiling)
    with atomic_write(path) as part:
        part.write_text(json.dumps(asdict(evaluation), indent=1))
    if figures.available():
        shown = [(row.name, row.lds, row.low, row.high) for row in rows]
        with figures.intervals(path.stem, shown, "linear datamodeling score") as figure:
            figures.save(figure, path)
    return evaluation, True


def models_folder(run: RunDirectory, fraction: float) -> Path:
    """Where the outputs of models on random subsets are kept, for each size of subset."""
    return run.evaluation / ("models" if fraction == EvaluationSettings.fraction else f"models-{fraction:g}")


def _row(name: str, predicted: Array, outputs: Array, seed: int) -> Row:
    mean, low, high = bootstrap_mean(spearman(predicted, outputs), seed=seed)
    return Row(name, mean, low, high, *bootstrap_both(predicted, outputs, seed=seed))


def _describe(scorer: Scorer) -> str:
    """The scorer, with the settings that are not its defaults."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(type(scorer)).parameters.items()}
    settings = {key: value for key, value in scorer.state.items() if key != "class" and defaults.get(key) != value}
    return f"{type(scorer).__name__}({', '.join(f'{key}={value}' for key, value in settings.items())})"
