"""What the checkpoints of a run predict, above all for samples that they were not trained on. Needs torch.

Shapes: n samples, T labels of each, C classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from trak_lightning.data.dataset import AttributionData
from trak_lightning.data.transfer import to_device
from trak_lightning.errors import DataError
from trak_lightning.model.checkpoints import Checkpoint
from trak_lightning.model.leave_unchanged import leave_unchanged
from trak_lightning.scoring.base import Array
from trak_lightning.tasks.base import Answers, Task, batch_of

Found = TypeVar("Found")


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


def _said(
    model: nn.Module,
    data: AttributionData,
    checkpoints: Sequence[Checkpoint],
    positions: Sequence[Array],
    ask: Callable[[Any], Found],
) -> Iterator[tuple[Array, Found]]:
    """Ask for the samples at ``positions[i]`` under checkpoint i, batch by batch: yield positions (b,) and the answer.

    Raises:
        CheckpointError: a checkpoint cannot be read any more.
    """
    with leave_unchanged(model), torch.no_grad():
        for checkpoint, mine in zip(checkpoints, positions, strict=True):
            checkpoint.load_into(model)
            model.eval()
            device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
            batches = np.split(mine, range(data.batch_size, len(mine), data.batch_size))
            for indexed in data.loader([batch.tolist() for batch in batches if len(batch)]):
                batch = to_device(indexed, data.hooks, model, device).batch
                with batch_of(len(indexed.index)):
                    found = ask(batch)
                yield indexed.index.cpu().numpy(), found


def mean_probabilities(
    model: nn.Module, task: Task, data: AttributionData, checkpoints: Sequence[Checkpoint], positions: Sequence[int]
) -> Array | None:
    """Average class probabilities of some samples over checkpoints, (s, C); None for a task without classes."""
    wanted, pieces = [np.asarray(positions)] * len(checkpoints), []
    for _, found in _said(model, data, checkpoints, wanted, lambda batch: task.probabilities(model, batch)):
        if found is None:
            return None
        pieces.append(found.double().cpu().numpy())
    return np.concatenate(pieces).reshape(len(checkpoints), len(positions), -1).mean(0) if pieces else None


def held_out_predictions(
    model: nn.Module,
    task: Task,
    data: AttributionData,
    checkpoints: Sequence[Checkpoint],
    subsets: Sequence[Array | None],
) -> Predictions | None:
    """Predict every sample with the checkpoints that were not trained on it; None for a task without classes.

    The mean is over log-probabilities: label errors are found more surely, and cut off closer to the share of false alarms asked
    for, than with the mean of probabilities (docs/benchmarks.md).

    `subsets` are the positions of the samples that each checkpoint was trained on; None where unknown, which counts as all.

    Raises:
        CheckpointError: a checkpoint cannot be read any more.
    """
    if not checkpoints:
        raise DataError("there is no checkpoint to predict with")
    n = len(data)
    seen = np.ones((len(subsets), n), dtype=bool)
    for mine, subset in zip(seen, subsets, strict=True):
        if subset is not None:
            mine[:] = False
            mine[subset] = True
    held_out = (~seen).sum(0)
    used = np.where(held_out > 0, ~seen, True)
    total, labels = np.zeros((n, 0, 0), dtype=np.float32), np.full((n, 0), -1)
    several, term = False, None

    def ask(batch: Any) -> Answers | None:
        nonlocal several, term
        if (answers := task.answers(model, batch)) is not None:
            several, term = True, answers.term
            return answers
        probabilities, classes = task.probabilities(model, batch), task.class_labels(batch)
        if probabilities is None or classes is None:
            return None
        return Answers(probabilities.double().clamp(min=1e-30).log().unsqueeze(1), classes.unsqueeze(1), None)

    for index, answers in _said(model, data, checkpoints, [*map(np.flatnonzero, used)], ask):
        if answers is None:
            return None
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
