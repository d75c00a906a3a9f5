"""What the checkpoints of a run predict, above all for samples that they were not trained on. Needs torch.

Shapes: n samples, T labels of each, C classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from trak_lightning.data.dataset import AttributionData
from trak_lightning.data.transfer import to_device
from trak_lightning.errors import DataError
from trak_lightning.model.checkpoints import Checkpoint
from trak_lightning.model.leave_unchanged import leave_unchanged
from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.tasks.base import Task, batch_of

Found = TypeVar("Found")

FITS = 0.9
"""The mean of p(label) from which a model fits its samples. A new head on a pretrained backbone is far below it."""
MOST, SECONDS, LARGEST = 256, 5.0, 10**9
"""How many samples are predicted before training, for how long, and by models of how many parameters at most: it is done on the CPU."""


@dataclass(frozen=True)
class Predictions:
    """Class predictions for the training samples."""

    log_probabilities: Array
    """(n, C), or (n, T, C) for several labels: mean over the checkpoints that were not trained on the sample; over all of them where
    every one was."""
    labels: Array
    """(n,) integers; (n, T) for several labels, −1 where there is none."""
    held_out: Array
    """(n,): the number of checkpoints that were not trained on the sample."""
    label_of: Array | None = None
    """(n,): which of its several labels these predictions of a sample are of; None for a task with one."""
    term: str | None = None
    """What each of several labels is of, see `trak_lightning.tasks.base.Answers`."""


def _asked(
    model: nn.Module,
    data: AttributionData,
    checkpoints: Sequence[Checkpoint | None],
    positions: Sequence[Array],
    ask: Callable[[Any], Found],
) -> Iterator[tuple[Array, Found]]:
    """Call `ask` with batches of the samples at ``positions[i]`` while the model has the weights of checkpoint i (None: those that it has now).
    Yield the positions (b,) of each batch, and the answer.

    Raises:
        CheckpointError: a checkpoint cannot be read any more.
    """
    with leave_unchanged(model), torch.no_grad():
        for checkpoint, mine in zip(checkpoints, positions, strict=True):
            if checkpoint is not None:
                checkpoint.load_into(model)
            model.eval()
            device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
            batches = np.split(mine, range(data.batch_size, len(mine), data.batch_size))
            for indexed in data.loader([batch.tolist() for batch in batches if len(batch)]):
                batch = to_device(indexed, data.hooks, model, device).batch
                with batch_of(len(indexed.index)):
                    found = ask(batch)
                yield indexed.index.cpu().numpy(), found


@dataclass(frozen=True)
class Prediction:
    """What the models say of one sample: class probabilities, averaged over checkpoints."""

    probabilities: Array
    """(T, C)"""
    labels: Array
    """(T,) integers, −1 where there is none."""
    term: str | None
    """What is labeled, see `trak_lightning.tasks.base.Answers`; None also for a task with one label."""
    several: bool
    """Whether the task has several labels for a sample."""

    @property
    def known(self) -> Array:
        """The places of the labels that are known, ascending."""
        return np.flatnonzero(self.labels >= 0)

    @property
    def wrong(self) -> Array:
        """The places where another class is more probable than that of the label, ascending."""
        return self.known[(self.probabilities.argmax(1) != self.labels)[self.known]]


def mean_predictions(
    model: nn.Module, task: Task, data: AttributionData, checkpoints: Sequence[Checkpoint], positions: Sequence[int]
) -> dict[int, Prediction] | None:
    """Predict some samples with all checkpoints, by position; None for a task without classes."""
    wanted = [np.asarray(positions)] * len(checkpoints)
    total, labels = dict[int, Array](), dict[int, Array]()
    term, several = None, False
    for index, answers in _asked(model, data, checkpoints, wanted, partial(_answers, model, task, unlabeled=True)):
        if answers is None:
            return None
        term, several = answers.term, answers.several
        probabilities = answers.log_probabilities.double().exp().cpu().numpy() / len(checkpoints)
        for position, found, own in zip(index.tolist(), probabilities, answers.labels.cpu().numpy(), strict=True):
            total[position] = total.get(position, 0.0) + found
            labels[position] = own
    return {position: Prediction(total[position], labels[position], term, several) for position in total}


class _Said(NamedTuple):
    log_probabilities: Tensor
    labels: Tensor
    term: str | None
    several: bool


def _answers(model: nn.Module, task: Task, batch: Any, *, unlabeled: bool = False) -> _Said | None:
    """What the model says of one label of each sample, or of several. `unlabeled`: also if the task does not say which it is."""
    if (answers := task.answers(model, batch)) is not None:
        return _Said(*answers, several=True)
    probabilities, labels = task.probabilities(model, batch), task.class_labels(batch)
    if probabilities is None or (labels is None and not unlabeled):
        return None
    if labels is None:
        labels = torch.full((len(probabilities),), -1)
    return _Said(probabilities.double().clamp(min=1e-30).log().unsqueeze(1), labels.unsqueeze(1), None, several=False)


def fits_before_training(model: nn.Module, task: Task, data: AttributionData) -> str | None:
    """Say that a model about to be trained is right on its training samples already, as one with fine-tuned weights is.

    p(label) is averaged over the samples of each class, and over classes, so that a model which only knows how frequent they are is not
    taken for one: evenly spread samples, `MOST` of them. None if this is below `FITS`, there are no two classes, or the model cannot be
    called before Lightning has set it up.
    """
    if sum(parameter.numel() for parameter in model.parameters()) > LARGEST:
        return None

    def ask(batch: Any) -> tuple[Tensor | None, Tensor | None]:
        return task.probabilities(model, batch), task.class_labels(batch)

    positions = np.unique(np.linspace(0, len(data) - 1, MOST).astype(int))
    of_class: dict[int, list[float]] = {}
    started = perf_counter()
    try:
        for _, (probabilities, labels) in _asked(model, data, [None], [positions], ask):
            if probabilities is None or labels is None:
                return None
            for row, label in zip(probabilities, labels, strict=True):
                of_class.setdefault(int(label), []).append(float(row[label]))
            if perf_counter() - started > SECONDS:
                break
    except Exception:  # what is wrong is said by the training, or by featurizing
        return None
    if len(of_class) < 2 or (mean := float(np.mean([*map(np.mean, of_class.values())]))) < FITS:
        return None
    return (
        f"the model fits its training samples before it is trained: p(label) is {mean:.2f} on average over {sum(map(len, of_class.values()))} "
        "of them. Does its __init__ load fine-tuned weights? Models trained from these know the samples outside their subsets, too: suspects, "
        "the trust in scores and evaluations would be wrong. Start from the base weights, or name the fine-tuned checkpoint under checkpoints and "
        "retrain nothing."
    )


def held_out_predictions(
    model: nn.Module,
    task: Task,
    data: AttributionData,
    checkpoints: Sequence[Checkpoint],
    features: Sequence[CheckpointFeatures],
) -> Predictions | None:
    """Predict every sample with the checkpoints that were not trained on it; None for a task without classes.

    The mean is over log-probabilities: label errors are found more surely, and cut off closer to the share of false alarms asked
    for, than with the mean of probabilities (docs/benchmarks.md).

    `features` are those of the checkpoints, and know which samples each was trained on; where that is not known, it counts as all.

    Raises:
        CheckpointError: a checkpoint cannot be read any more.
    """
    if not checkpoints:
        raise DataError("there is no checkpoint to predict with")
    n = len(data)
    subsets = {each.train.spec.checkpoint: each.subset for each in features}
    seen = np.ones((len(checkpoints), n), dtype=bool)
    for mine, checkpoint in zip(seen, checkpoints, strict=True):
        if (subset := subsets.get(checkpoint.id)) is not None:
            mine[:] = False
            mine[subset] = True
    held_out = (~seen).sum(0)
    used = np.where(held_out > 0, ~seen, True)
    total, labels = np.zeros((n, 0, 0), dtype=np.float32), np.full((n, 0), -1)
    several, term = False, None
    for index, answers in _asked(
        model, data, checkpoints, [*map(np.flatnonzero, used)], partial(_answers, model, task)
    ):
        if answers is None:
            return None
        several, term = answers.several, answers.term
        _, T, C = answers.log_probabilities.shape
        if total.shape[1] < T or not total.shape[2]:  # sequences of a later batch may be longer
            more = T - total.shape[1]
            total = np.pad(total, ((0, 0), (0, more), (0, C - total.shape[2])))
            labels = np.pad(labels, ((0, 0), (0, more)), constant_values=-1)
        total[index, :T] += answers.log_probabilities.double().cpu().numpy()
        labels[index, :T] = answers.labels.cpu().numpy()
    total /= used.sum(0)[:, None, None]
    if not several:
        return Predictions(total[:, 0], labels[:, 0], held_out)
    return Predictions(total, labels, held_out, term=term)
