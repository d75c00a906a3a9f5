"""What the checkpoints of a run predict for samples that they were not trained on. Needs torch.

Shapes: n samples, C classes.
"""

from collections.abc import Sequence
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
    """(n, C): mean over the checkpoints that were not trained on the sample; over all of them where every one was."""
    labels: Array
    """(n,) integers."""
    held_out: Array
    """(n,): the number of checkpoints that were not trained on the sample."""


def held_out_predictions(
    model: nn.Module,
    task: Task,
    data: AttributionData,
    checkpoints: Sequence[Checkpoint],
    subsets: Sequence[Array | None],
) -> Predictions | None:
    """Predict every sample with the checkpoints that were not trained on it: one forward pass each.

    The mean is over log-probabilities: label errors are found more surely, and cut off closer to the share of false alarms asked
    for, than with the mean of probabilities (docs/benchmarks.md).

    Args:
        model: takes the weights of each checkpoint in turn, and is restored.
        task: what was attributed.
        data: the training samples.
        checkpoints: those of the run.
        subsets: the positions of the samples that each checkpoint was trained on; None where unknown, which counts as all.

    Returns:
        None for a task without classes.

    Raises:
        CheckpointError: a checkpoint cannot be read any more.
    """
    n = len(data)
    seen = np.stack([_members(subset, n) for subset in subsets])
    held_out = (~seen).sum(0)
    used = np.where(held_out > 0, ~seen, True)
    total: Array | None = None
    labels = np.zeros(n, dtype=np.int64)
    with leave_unchanged(model), torch.no_grad():
        for checkpoint, mine in zip(checkpoints, used, strict=True):
            checkpoint.load_into(model)
            model.eval()
            device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
            positions = np.flatnonzero(mine)
            batches = np.split(positions, range(data.batch_size, len(positions), data.batch_size))
            for indexed in data.loader([batch.tolist() for batch in batches if len(batch)]):
                batch = to_device(indexed, data.hooks, model, device).batch
                index = indexed.index.cpu().numpy()
                with batch_of(len(index)):
                    probabilities, classes = task.probabilities(model, batch), task.class_labels(batch)
                if probabilities is None or classes is None:
                    return None
                found = probabilities.double().clamp(min=1e-30).log().cpu().numpy()
                total = np.zeros((n, found.shape[1]), dtype=np.float32) if total is None else total
                total[index] += found
                labels[index] = classes.cpu().numpy()
    if total is None:
        raise DataError("there is no checkpoint to predict with")
    return Predictions(total / used.sum(0)[:, None], labels, held_out)


def _members(subset: Array | None, n: int) -> Array:
    found = np.ones(n, dtype=bool)
    if subset is not None:
        found[:] = False
        found[subset] = True
    return found
