"""Write ``RUN_DIR/report/NAME.html``."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from trak_lightning.data.dataset import AttributionData
from trak_lightning.decisions.outcome import Outcome
from trak_lightning.decisions.predictions import held_out_predictions, mean_predictions
from trak_lightning.decisions.suspects import find_suspects
from trak_lightning.errors import CheckpointError, DataError
from trak_lightning.featurize.reuse import require_same_samples
from trak_lightning.model.checkpoints import Checkpoint, read_checkpoints
from trak_lightning.report.gather import TARGETS, Sources, TokenScorer, choose_targets, gather, require_fitting
from trak_lightning.report.known import samples_of_both
from trak_lightning.report.page import page
from trak_lightning.report.suspicion import Suspicion
from trak_lightning.run.atomic import atomic_write
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.held_out import numbers_of
from trak_lightning.scoring.same_rows import require_scored
from trak_lightning.scoring.score_run import load_features
from trak_lightning.scoring.scores import Scores, open_scores
from trak_lightning.stores.base import FeatureStore
from trak_lightning.stores.configured import open_store
from trak_lightning.tasks.base import Task

MOST_TARGETS = 5_000
"""Largest number of targets that are predicted to count mistakes."""
MOST_PREDICTED = 500_000
"""Largest number of training samples times checkpoints that are predicted for a page."""


def write_report(
    run_dir: str | Path,
    train_data: Any,
    target_data: Any,
    *,
    model: nn.Module | None = None,
    task: Task | None = None,
    checkpoints: Sequence[Checkpoint] | None = None,
    verify: Callable[[], None] | None = None,
    render: Callable[[Any], Any] | None = None,
    datamodule: Any = None,
    class_names: Sequence[str] | None = None,
    tokenizer: Any = None,
    targets: Sequence[int] | None = None,
    num_targets: int = TARGETS,
    name: str | None = None,
    train_split: str = "train",
    target_split: str | None = None,
    store: FeatureStore | None = None,
    title: str | None = None,
    weights_only: bool = True,
    path: str | Path | None = None,
    token_scores: TokenScorer | None = None,
) -> Path:
    """Write one self-contained page about scored targets; returns its path, ``RUN_DIR/report/NAME.html``, named as the scores are.

    Args:
        run_dir: the run directory.
        train_data: the training data that was featurized: dataset or loader.
        target_data: the targets that were scored: dataset or loader.
        model: the model, to show predictions; needs `task`. None leaves predictions out.
        task: the task that the run was made with.
        checkpoints: the checkpoints that were featurized; None reads their files again.
        verify: compares `model` and `task` with the stored rows, before they predict; None takes them for the same.
        render: converts a sample to what is shown of it, see `trak_lightning.report.Samples`; None uses the DataModule's
            method ``render``, if any.
        datamodule: object whose ``render``, ``tokenizer``, ``class_names`` and ``feature_names`` are used, where it has them.
            The data collator's tokenizer is used if the object has none.
        class_names: names of the classes 0, 1, …, if not those of `datamodule`, of the dataset or of the model.
        tokenizer: converts lists of token ids to text, if not that of `datamodule` or of the data collator.
        targets: positions of the targets to show; None chooses `num_targets`, most of them mistakes.
        num_targets: number of targets to choose.
        name: name of the score file; None if there is only one.
        train_split: split name of the training features.
        target_split: split name of the features of the targets; None for that of the score file.
        store: where features are; None uses what the run's configuration says.
        title: title of the page; None uses the name of the run directory.
        weights_only: False unpickles checkpoint files, which executes code in them.
        path: file to write instead.
        token_scores: splits the scores of (target, training sample) pairs by tokens, to mark the tokens of the first examples
            (`TRAK.token_scores`); None marks none.

    Raises:
        IncompleteRunError: there are no scores yet.
        StaleRowsError: samples are not those whose rows were stored, or what `verify` finds.
        DataError: the data is not what was scored, `render` fails, or matplotlib or jinja2 is missing.
    """
    run = RunDirectory(run_dir)
    store = store or open_store(run)
    scores = open_scores(run, name)
    require_scored(store, scores)
    if scores.train_split not in (None, train_split):
        raise DataError(
            f"{scores.path} has scores of the training samples {scores.train_split!r}, and those given are {train_split!r}. Score against "
            "these, under another name, or give the samples that were scored."
        )
    features = load_features(
        run, store, targets=target_split or scores.target_split or scores.path.stem, train=train_split
    )
    if len(scores) != (m := features[0].targets.spec.num_samples):
        raise DataError(
            f"{scores.path} has scores of {len(scores)} groups of {m} targets, and a page shows single targets. Name another score file."
        )
    train, chosen = (AttributionData.of(data, hooks=datamodule) for data in (train_data, target_data))
    meaning = task.meaning if task is not None else run.read().meaning
    of_train, of_targets = (
        numbers_of(rows) if meaning.number else None for rows in (features[0].train, features[0].targets)
    )
    shown = samples_of_both(
        train,
        chosen,
        task=task,
        model=model,
        numbers=(of_train, of_targets),
        class_names=class_names,
        tokenizer=tokenizer,
        render=render,
    )
    sources = Sources(run, scores, features, *shown, token_scores)
    outcome = Outcome.of(features, meaning)
    positions = list(targets) if targets is not None else choose_targets(outcome.error, num_targets)
    require_fitting(sources, positions)
    for data, rows in ((train, features[0].train), (chosen, features[0].targets)):
        require_same_samples(data, rows)
    others = [
        f"Groups and differences of these targets have scores of their own, which a page does not show: trak top {run_dir} --name {other} --target 0"
        for other in _grouped(run, scores)
    ]
    notes, unpredicted, predictions = list[str](), list[str](), None
    if model is not None and task is not None:
        try:
            if verify is not None:
                verify()
            known = checkpoints or read_checkpoints(run, model, weights_only=weights_only)
            outcome.predict(partial(mean_predictions, model, task, chosen, known), positions, MOST_TARGETS)
            if len(train) * len(known) <= MOST_PREDICTED:
                predictions = held_out_predictions(model, task, train, known, features)
            else:
                unpredicted.append(
                    "The training set is too large to predict for a page: trak suspects finds labels that are likely wrong."
                )
        except CheckpointError as error:
            notes.append(f"Predictions are not shown: {error}")
    suspects = find_suspects(features, predictions, outcome.meaning, class_names=sources.train.class_names)
    if suspects.other_scale is not None:
        notes.append(f"Scores and suspects are not to be trusted: {suspects.other_scale}.")
    report = gather(
        sources,
        outcome,
        Suspicion.of(suspects, sources.train),
        positions,
        title=title or run.path.name,
        facts=_facts(model),
        notes=notes,
        remarks={"targets": others, "suspects": unpredicted},
    )
    written = Path(path) if path is not None else run.page(scores.path.stem)
    with atomic_write(written) as part:
        part.write_text(page(report), encoding="utf-8")
    return written


def _grouped(run: RunDirectory, scores: Scores) -> list[str]:
    """The names of the scores of groups of the same targets."""
    others = [
        each for each in map(Scores, run.score_files) if each.grouped and each.target_split == scores.target_split
    ]
    return [each.path.stem for each in others]


def _facts(model: nn.Module | None) -> list[tuple[str, str]]:
    if model is None:
        return []
    return [("model", f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters")]
