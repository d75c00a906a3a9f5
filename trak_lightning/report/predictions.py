"""Predictions of the models of a run. Needs torch, unlike most of the report."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from trak_lightning.data.dataset import AttributionData
from trak_lightning.data.transfer import to_device
from trak_lightning.model.checkpoints import Checkpoint
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.base import Array
from trak_lightning.tasks.base import Task


def mean_probabilities(
    run: RunDirectory,
    model: nn.Module,
    task: Task,
    data: AttributionData,
    positions: Sequence[int],
    *,
    weights_only: bool = True,
) -> Array | None:
    """Compute class probabilities of some samples, averaged over checkpoints: (s, C); None for a task without classes.

    Raises:
        CheckpointError: a checkpoint file is no longer where it was when features were computed.
    """
    model.eval()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    checkpoints = run.require_checkpoints()
    total: Any = 0.0
    for checkpoint in checkpoints:
        Checkpoint.of(checkpoint.source, model, weights_only=weights_only).load_into(model)
        pieces = []
        for start in range(0, len(positions), data.batch_size):
            indexed = next(iter(data.loader([list(positions[start : start + data.batch_size])])))
            with torch.no_grad():
                found = task.probabilities(model, to_device(indexed, data.hooks, model, device).batch)
            if found is None:
                return None
            pieces.append(found.float().cpu().numpy())
        total = total + np.concatenate(pieces)
    probabilities: Array = total / len(checkpoints)
    return probabilities
