"""What the checkpoints of a run predict, above all for samples that they were not trained on. Needs torch.

Shapes: n samples, C classes, or L labels that are yes or no.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from trak_lightning.data.dataset import AttributionData
from trak_lightning.data.transfer import to_device
from trak_lightning.errors import DataError
from trak_lightning.model.checkpoints import Checkpoint
from trak_lightning.model.leave_unchanged import leave_unchanged
from trak_lightning.scoring.base import Array
from trak_lightning.tasks.base import Task, batch_of


@dataclass(frozen=True)
class Predictions:
    """Class predictions for the training samples."""

    log_probabilities: Array
    """(n, C), or (n, L, 2) for L yes-or-no labels: mean over the checkpoints that were not trained on the sample; over all of them where
    every one was."""
    labels: Array
    """(n,) integers; (n, L) for several labels, −1 where one is not known."""
    held_out: Array
    """(n,): the number of checkpoints that were not trained on the sample."""
    label_of: Array | None = None
    """(n,): which of its several labels these predictions of a sample are of; None for a task with one."""


def class_predictions(
    model: nn.Module,
    task: Task,
    data: AttributionData,
    checkpoints: Sequence[Checkpoint],
    positions: Sequence[Array],
    several: bool = False,
) -> Iterator[tuple[Array, Array, Array | None]]:
    """Predict the samples at ``positions[i]`` under checkpoint i; yield, batch by batch, positions (b,), class probabilities
    (b, C) and labels (b,), None if the task does not know them; (b, L, 2) and (b, L) if `several` labels are asked for and the task has
    them. Nothing for a task without classes.

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
                    answers = task.answers(model, batch) if several else None
                    if answers is None:
                        probabilities, labels = task.probabilities(model, batch), task.class_labels(batch)
                    else:
                        log_odds, labels = answers
                        probabilities = torch.stack([-log_odds, log_odds], -1).double().sigmoid()
                if probabilities is None:
                    return
                found = probabilities.double().cpu().numpy()
                yield indexed.index.cpu().numpy(), found, None if labels is None else labels.cpu().numpy()


def mean_probabilities(
    model: nn.Module, task: Task, data: AttributionData, checkpoints: Sequence[Checkpoint], positions: Sequence[int]
) -> Array | None:
    """Average class probabilities of some samples over checkpoints, (s, C); None for a task without classes."""
    wanted = [np.asarray(positions)] * len(checkpoints)
    pieces = [found for _, found, _ in class_predictions(model, task, data, checkpoints, wanted)]
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
    total: Array | None = None
    labels: Array | None = None
    for index, found, classes in class_predictions(
        model, task, data, checkpoints, [*map(np.flatnonzero, used)], several=True
    ):
        if classes is None:
            return None
        if total is None or labels is None:
            total = np.zeros((n, *found.shape[1:]), dtype=np.float32)
            labels = np.zeros((n, *classes.shape[1:]), dtype=np.int64)
        total[index] += np.log(found.clip(min=1e-30))
        labels[index] = classes
    if total is None or labels is None:
        return None
    return Predictions(total / used.sum(0).reshape(n, *[1] * (total.ndim - 1)), labels, held_out)
