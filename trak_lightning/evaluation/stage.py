"""The linear datamodeling score of a run, beside baselines. No torch."""

import inspect
import json
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trak_lightning import registry
from trak_lightning.atomic import atomic_write
from trak_lightning.evaluation.lds import bootstrap_mean, lds
from trak_lightning.evaluation.outputs import read_outputs
from trak_lightning.evaluation.random_scores import Random
from trak_lightning.rundir import RunDirectory, read_json
from trak_lightning.scoring.base import BLOCK_BYTES, Array, Scorer
from trak_lightning.scoring.gradients import GradientDot
from trak_lightning.scoring.inverse import IllConditionedWarning
from trak_lightning.scoring.stage import features_fingerprint, load_features, score_run
from trak_lightning.scoring.trak import Trak
from trak_lightning.settings import EvaluationSettings
from trak_lightning.stores.base import FeatureStore


@dataclass(frozen=True)
class Row:
    """The linear datamodeling score of one kind of scores: mean over targets, and its 95 % bootstrap interval."""

    name: str
    lds: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """``evaluation/lds-<targets>.json``. The first row is that of the scorer evaluated, the others are baselines."""

    request: dict[str, Any]
    num_models: int
    num_targets: int
    rows: tuple[Row, ...]

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
        for row in self.rows:
            table.add_row(row.name, f"{row.lds:.3f}", f"{row.low:.3f} … {row.high:.3f}")
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
        "scorer": scorer.state,
        "features": features_fingerprint(checkpoints),
        "settings": asdict(settings),
        "seed": seed,
    }
    path = run.evaluation / f"lds-{targets}.json"
    if path.exists():
        found = read_json(path)
        if found.get("request") == request:
            return Evaluation(**{**found, "rows": tuple(Row(**row) for row in found["rows"])}), False
    subsets, outputs = read_outputs(
        run.evaluation / "models",
        settings.models,
        num_samples=checkpoints[0].train.spec.num_samples,
        num_targets=checkpoints[0].targets.spec.num_samples,
    )
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
        rows = tuple(
            Row(name, *bootstrap_mean(lds(blocks, subsets, outputs), seed=seed)) for name, blocks in candidates.items()
        )
    evaluation = Evaluation(request, len(outputs), outputs.shape[1], rows)
    with atomic_write(path) as part:
        part.write_text(json.dumps(asdict(evaluation), indent=1))
    return evaluation, True


def _describe(scorer: Scorer) -> str:
    """The scorer, with the settings that are not its defaults."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(type(scorer)).parameters.items()}
    settings = {key: value for key, value in scorer.state.items() if key != "class" and defaults.get(key) != value}
    return f"{type(scorer).__name__}({', '.join(f'{key}={value}' for key, value in settings.items())})"
