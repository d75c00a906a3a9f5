"""Predictions of the models of a run. Needs torch, unlike most of the report."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from trak_lightning.data.dataset import AttributionData
from trak_lightning.data.transfer import to_device
from trak_lightning.model.checkpoints import Checkpoint
from trak_lightning.model.leave_unchanged import leave_unchanged
from trak_lightning.scoring.base import Array
from trak_lightning.tasks.base import Task, batch_of


def class_probabilities(
    model: nn.Module,
    task: Task,
    checkpoints: Sequence[Checkpoint],
    data: AttributionData,
    positions: Sequence[int],
) -> Array | None:
    """Compute class probabilities of some samples under each checkpoint: (checkpoints, s, C); None for a task without classes.

    Raises:
        CheckpointError: a checkpoint file is no longer where it was when features were computed.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    found_by: list[Array] = []
    with leave_unchanged(model), torch.no_grad():
        model.eval()
        for checkpoint in checkpoints:
            checkpoint.load_into(model)
            pieces, size = [], data.batch_size
            for indexed in data.loader([list(positions[i : i + size]) for i in range(0, len(positions), size)]):
                with batch_of(len(indexed.index)):
                    found = task.probabilities(model, to_device(indexed, data.hooks, model, device).batch)
                if found is None:
                    return None
                pieces.append(found.float().cpu().numpy())
            found_by.append(np.concatenate(pieces))
    return np.stack(found_by)
