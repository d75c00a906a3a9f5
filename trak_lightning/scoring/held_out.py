"""Outputs and probabilities of targets, and of training samples under the checkpoints that were not trained on them."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from trak_lightning.run.meaning import Meaning
from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.stores.base import FeatureSet


def held_out_probabilities(checkpoints: Sequence[CheckpointFeatures], meaning: Meaning) -> tuple[Array | None, bool]:
    """Return the mean probability of each training sample's right answer, (n,), and whether it is from held-out checkpoints.

    The mean is over the checkpoints that were not trained on the sample; over all checkpoints where there are none. None if
    the probability does not follow from the output of the task.
    """
    found = [meaning.probabilities(*output_and_loss_weight(features.train)) for features in checkpoints]
    if any(each is None for each in found):
        return None, False
    unseen = held_out(checkpoints)
    return held_out_mean(np.stack(found), unseen), bool(unseen.any())  # type: ignore[arg-type]


def output_and_loss_weight(rows: FeatureSet) -> tuple[Array, Array]:
    """Return output f and loss weight q of all samples, (n,) each, as `Meaning` expects them."""
    return rows.column("output"), rows.column("loss_weight")


def numbers_of(rows: FeatureSet) -> Callable[[int], float]:
    """Return a function that finds the number y = f + q of a sample by its position, where f predicts a number: what the task
    compares with the prediction, whatever the dataset returns."""

    @cache
    def block(number: int) -> Array:
        found: Array = rows.column("output", [number]) + rows.column("loss_weight", [number])
        return found

    return lambda index: float(block(index // rows.spec.block_size)[index % rows.spec.block_size])


def target_outputs(checkpoints: Sequence[CheckpointFeatures], meaning: Meaning) -> tuple[Array, Array, Array | None]:
    """Return output f, loss weight q and, if known, the probability of the right answer of each target, (m,) each: means over checkpoints."""
    stored = [output_and_loss_weight(features.targets) for features in checkpoints]
    output, loss_weight = np.mean(stored, axis=0)
    found = [meaning.probabilities(*each) for each in stored]
    return output, loss_weight, None if meaning.probability is None else np.mean(found, axis=0)  # type: ignore[arg-type]


def held_out(checkpoints: Sequence[CheckpointFeatures]) -> npt.NDArray[np.bool_]:
    """Return which checkpoints were not trained on which samples, (checkpoints, n); none if a subset is unknown."""
    unseen = np.zeros((len(checkpoints), checkpoints[0].train.spec.num_samples), dtype=bool)
    if all(features.subset is not None for features in checkpoints):
        for row, features in zip(unseen, checkpoints, strict=True):
            row[:] = True
            row[features.subset] = False
    return unseen


def held_out_mean(values: Array, unseen: npt.NDArray[np.bool_]) -> Array:
    """Average `values` (checkpoints, n, …) over the checkpoints where `unseen` (checkpoints, n); over all where there are none."""
    used = np.where(unseen.any(axis=0), unseen, True).reshape(*unseen.shape, *[1] * (values.ndim - 2))
    mean: Array = np.where(used, values, 0).sum(axis=0) / used.sum(axis=0)
    return mean
