"""RUN_DIR/report/index.html."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from trak_lightning.data.dataset import AttributionData
from trak_lightning.errors import CheckpointError
from trak_lightning.report.contents import Fact
from trak_lightning.report.gather import TARGETS, Sources, choose_targets, gather, mean_outputs, require_fitting
from trak_lightning.report.page import page
from trak_lightning.report.predictions import mean_probabilities
from trak_lightning.report.samples import Samples
from trak_lightning.run.atomic import atomic_write
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.score_run import load_features
from trak_lightning.scoring.scores import open_scores
from trak_lightning.stores.base import FeatureStore
from trak_lightning.stores.configured import open_store
from trak_lightning.tasks.base import Task


def write_report(
    run_dir: str | Path,
    train_data: Any,
    target_data: Any,
    *,
    model: nn.Module | None = None,
    task: Task | None = None,
    render: Callable[[Any], Any] | None = None,
    datamodule: Any = None,
    targets: Sequence[int] | None = None,
    num_targets: int = TARGETS,
    name: str | None = None,
    train_split: str = "train",
    target_split: str | None = None,
    store: FeatureStore | None = None,
    title: str | None = None,
    weights_only: bool = True,
    path: str | Path | None = None,
) -> Path:
    """Make one self-contained page of a run that was scored, and return where it is: ``RUN_DIR/report/index.html``.

    Args:
        run_dir: the run directory.
        train_data: the training data that was featurised: dataset or loader.
        target_data: the targets that were scored.
        model: to say what was predicted; with `task`. None leaves predictions out.
        task: as the run was made with.
        render: makes of one sample what is shown of it, see `trak_lightning.report.Samples`; the DataModule's ``render`` if None.
        datamodule: where ``render``, ``tokenizer``, ``class_names`` and ``feature_names`` are looked for.
        targets: positions of the targets to show; if None, `num_targets` are chosen, most of them mistakes.
        name: of the score file; the only one if None.
        train_split: under which the training features are stored.
        target_split: under which the features of the targets are stored; `name` if None.
        store: where features live; what the run's configuration says if None.
        title: of the page.
        weights_only: False unpickles checkpoint files, which executes code in them.
        path: where to write instead.

    Raises:
        IncompleteRunError: there are no scores yet.
        DataError: the data is not what was scored, `render` fails, or matplotlib or jinja2 is missing.
    """
    run = RunDirectory(run_dir)
    store = store or open_store(run)
    scores = open_scores(run, name)
    checkpoints = load_features(run, store, targets=target_split or scores.path.stem, train=train_split)
    train, chosen = AttributionData.of(train_data), AttributionData.of(target_data)
    sources = Sources(
        run,
        scores,
        checkpoints,
        _samples(train.dataset, render, datamodule, task),
        _samples(chosen.dataset, render, datamodule, task),
    )
    positions = list(targets) if targets is not None else choose_targets(mean_outputs(checkpoints), num_targets)
    require_fitting(sources, positions)
    probabilities, notes = None, []
    if model is not None and task is not None:
        try:
            probabilities = mean_probabilities(run, model, task, chosen, positions, weights_only=weights_only)
        except CheckpointError as error:
            notes.append(f"Predictions are not shown: {error}")
    report = gather(
        sources,
        positions,
        title=title or run.path.name,
        facts=_facts(model),
        probabilities=probabilities,
        logistic=checkpoints[0].train.spec.fingerprint.get("loss_function") == "logistic",
        notes=notes,
    )
    written = Path(path) if path is not None else run.path / "report" / "index.html"
    with atomic_write(written) as part:
        part.write_text(page(report), encoding="utf-8")
    return written


def _samples(dataset: Any, render: Callable[[Any], Any] | None, datamodule: Any, task: Task | None) -> Samples:
    tokenizer = getattr(datamodule, "tokenizer", None)
    decode = getattr(tokenizer, "decode", None)
    return Samples(
        dataset,
        render=render or getattr(datamodule, "render", None),
        decode=None if decode is None else lambda ids: str(decode(ids, skip_special_tokens=True)),
        class_names=getattr(datamodule, "class_names", None),
        feature_names=getattr(datamodule, "feature_names", None),
        label_keys=[key for key in (getattr(task, "labels", None),) if isinstance(key, str)],
    )


def _facts(model: nn.Module | None) -> list[Fact]:
    if model is None:
        return []
    return [Fact("model", type(model).__name__, f"{sum(p.numel() for p in model.parameters()):,} parameters")]
