"""Notice that training_step computes another loss than that of the task."""

import logging
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import docs_page
from trak_lightning.extractors.iterative import sample_gradient
from trak_lightning.gradients import ParameterLayout
from trak_lightning.model.autocast import is_cast
from trak_lightning.model.first_time import first_time
from trak_lightning.run.arrays import rms
from trak_lightning.run.formatting import format_number
from trak_lightning.stores.base import FeatureRows
from trak_lightning.tasks.base import Task, batch_of
from trak_lightning.tasks.binary import BinaryClassification
from trak_lightning.tasks.classification import Classification
from trak_lightning.tasks.loss import Loss
from trak_lightning.tasks.regression import Regression, prediction_scale
from trak_lightning.tasks.sum_of_margins import SumOfMargins

log = logging.getLogger(__name__)

COMPARED = (Classification, BinaryClassification, Regression, SumOfMargins)
"""Tasks for which q·∇f is exactly minus the gradient of the loss of a sample, or would be if they weighed each of its terms."""

PARALLEL, ALIKE = 0.9, 1.5
"""The smallest cosine of the two gradients of a sample, and the largest ratio of their lengths' ratios over samples, that pass: weight decay
in the loss, or its scale, must not be noticed."""

SMALLEST = 1e-2
"""The smallest |q|, relative to the largest, of a sample that is compared: beside those below, weight decay is large."""

SAME = 1.02
"""The largest ratio of two factors that count as one, of samples of the same class."""

STRAIGHT = 1e-3
"""The largest distance of labels from a linear function of those of training, relative to their spread, where training scales them."""

CLASSES = 4
"""Of how many classes a sample is compared, since a class may have a weight."""

VISIBLE = 0.05
"""The smallest difference of the losses of two samples, relative to these, that is compared: beside a smaller one, further terms may be large."""


def warn_of_training_step(
    model: nn.Module, task: Task, layout: ParameterLayout, batch: SampleBatch, rows: FeatureRows
) -> None:
    """Compare q·∇f of some samples of a batch, with large, medium and small |q| and of several classes, with minus the gradient of the loss that training_step
    returns for each alone, and warn where it is another one: labels that it scales or smooths, classes that it weights, further terms."""
    step = getattr(type(model), "training_step", None)
    if step in (None, L.LightningModule.training_step) or not isinstance(task, COMPARED) or is_cast():
        return
    # The gradient of a smoothed loss is not parallel to ∇f.
    if isinstance(task, Classification) and task.label_smoothing:
        return
    if not first_time(model, ("training_step", type(task))):
        return
    try:
        chosen = _chosen(rows, task, batch)
        found = [_compared(model, task, layout, batch.fetch([each])) for each in chosen]
    except (
        Exception
    ):  # the user's code, which may need a training that is under way, or batches of more than one sample
        return
    if not found or np.isnan(cosines := np.array([each.cosine for each in found])).any():
        return
    ratios = np.array([each.ratios for each in found])
    if cosines.min() < PARALLEL or (ratios.max(0) > ALIKE * ratios.min(0)).all():
        option = _pos_weight(task, found, batch, chosen) or _scale(task, found)
        log.warning(
            "task  training_step of %s has another loss than task %s: the gradients of some samples are %s times those of the task, with "
            "cosines %s; one factor is expected, and cosines of 1. Does it scale or smooth labels, weight classes, or add other terms? Set that "
            "option of the task%s, or use task loss with function: training_step (%s)",
            type(model).__name__,
            type(task).__name__,
            ", ".join(f"{ratio:.3g}" for ratio in ratios[:, 0]),
            ", ".join(f"{cosine:.2f}" for cosine in cosines),
            f" ({option})" if option else "",
            docs_page("trust", "The loss that you trained with"),
        )
    elif isinstance(task, Regression) and (scaled := _scaled(found)) is not None:
        option = _scale(task, found)
        log.warning(
            "task  training_step of %s has another loss than task %s: its losses are those of differences between prediction and label that are "
            "about %s times the task's. Does it scale the labels? The loss weight y − f, and so the scores, take the labels of the batch as they are. "
            "Give the task the mean and std by which it scales them%s, or see %s",
            type(model).__name__,
            type(task).__name__,
            f"{scaled:.1g}",
            f" ({option})" if option else "",
            docs_page("modalities", "Labels that training_step scales"),
        )


def _chosen(rows: FeatureRows, task: Task, batch: SampleBatch) -> list[int]:
    """The positions of the samples with the largest, the middle and the smallest |q|, and with the largest of some classes."""
    sizes = np.abs(rows.loss_weight)
    order = [int(each) for each in np.argsort(-sizes, kind="stable") if sizes[each] > SMALLEST * sizes.max()]
    with batch_of(batch.size):
        labels = task.class_labels(batch.data)
    first = {} if labels is None else {int(labels[each]): each for each in reversed(order)}
    return sorted({order[0], order[len(order) // 2], order[-1], *list(first.values())[:CLASSES]}) if order else []


def _pos_weight(task: Task, found: list["_Compared"], batch: SampleBatch, chosen: list[int]) -> str | None:
    """Name the option of a task of yes-or-no answers that makes the factor of both one; None if the factor of one of them is not one."""
    if not isinstance(task, BinaryClassification) or min(each.cosine for each in found) < PARALLEL:
        return None
    with batch_of(batch.size):
        labels = task.class_labels(batch.data)[chosen].cpu().numpy()
    no, yes = (np.array([each.ratios[0] for each in found])[labels == answer] for answer in (0, 1))
    if not len(no) or not len(yes) or any(side.max() > SAME * side.min() for side in (no, yes)):
        return None
    return f"pos_weight: {task.pos_weight * float(yes.mean() / no.mean()):.3g} makes it one factor"


def _scale(task: Task, found: list["_Compared"]) -> str | None:
    """Name the options of a regression that make the labels those of training; None if these are no linear function of the labels.

    For ℓ = c(y' − f)² + const, with y' on the scale of f, ``y' = f − ℓ'/2c`` and ``4c = Δ(ℓ'²)/Δℓ``, see `_scaled`. If the labels are
    ``y = a + by'``, and f = m + s · prediction, then the model predicts (y − a − bm)/bs.
    """
    if not isinstance(task, Regression) or len(found) < 3 or min(abs(each.cosine) for each in found) < PARALLEL:
        return None
    slopes = np.array([-np.sign(each.cosine) * each.ratios[0] * each.loss_weight for each in found])
    losses = np.array([each.loss for each in found])
    outputs = np.array([each.output for each in found])
    labels = outputs + np.array([each.loss_weight for each in found])
    high, low = np.abs(slopes).argmax(), np.abs(slopes).argmin()
    curvature = (slopes[high] ** 2 - slopes[low] ** 2) / (2 * (losses[high] - losses[low]) or np.inf)
    if not 0 < curvature < np.inf:
        return None
    of_training = outputs - slopes / curvature
    if np.ptp(of_training) <= STRAIGHT * np.abs(of_training).max() or not np.ptp(labels):
        return None
    b, a = np.polyfit(of_training, labels, 1)
    if b <= 0 or rms(labels - a - b * of_training) > STRAIGHT * np.ptp(labels):
        return None
    if abs(b - 1) <= STRAIGHT and abs(a) <= STRAIGHT * np.ptp(labels):
        return None
    mean, std = prediction_scale(task)
    mean, std = a + b * mean, b * std
    mean = 0.0 if abs(mean) <= STRAIGHT * np.ptp(labels) else mean
    if (
        mean == 0 and abs(std - 1) <= STRAIGHT
    ):  # only labels of the dataset can be those of training while f has another scale
        return "labels_are: scaled, since the dataset has scaled the labels already"
    return f"mean: {format_number(mean)}, std: {format_number(std)}, to four digits"


def _scaled(found: list["_Compared"]) -> float | None:
    """How many times the difference y − f of the task that of the training is, where gradients do not tell: labels that are all far from the
    predictions of a fresh model look like the same labels divided by 1000, with another factor of the loss.

    For ℓ = c(y' − f)² + const, two samples have Δ(ℓ'²) = 4cΔℓ, and ℓ' = 2c(f − y') is the ratio times q. So whatever c is,
    ``(y' − f)/q = ratio/2c = 2 · ratio · Δℓ/Δ(ℓ'²)``. None if that is about 1, or not to be seen in these samples.
    """
    slopes = {abs(each.ratios[0] * each.loss_weight): each for each in found}
    (steep, large), (flat, small) = ((size, slopes[size]) for size in (max(slopes), min(slopes)))
    expected = (steep**2 - flat**2) / (2 * large.ratios[0]) if large.ratios[0] else 0.0
    difference = large.loss - small.loss
    if not 0 < expected < np.inf or max(expected, difference) <= VISIBLE * max(abs(large.loss), abs(small.loss)):
        return None
    scale = difference / expected
    return scale if 0 < scale < 1 / ALIKE or scale > ALIKE else None


class _Compared(NamedTuple):
    cosine: float
    """Of the gradients of the loss of training and of that of the task; NaN where the loss of training is random."""
    ratios: tuple[float, ...]
    """The ratio of their lengths, where the loss is the sum over the terms of a sample, or the sum divided by each of `_divisors`."""
    loss: float
    """That of training."""
    loss_weight: float
    output: float


def _compared(model: nn.Module, task: Task, layout: ParameterLayout, one: SampleBatch) -> _Compared:
    training = Loss(function="training_step", single_losses="trusted")
    first, trained = sample_gradient(model, training, one, layout)
    with torch.no_grad(), batch_of(1):
        random = not torch.equal(first, training.output(model, one.data))
    exact = task.summed_losses() if isinstance(task, SumOfMargins) else task
    output, slopes = sample_gradient(model, exact, one, layout)
    with torch.no_grad(), batch_of(1):
        loss_weight = float(exact.loss_weight_and_curvature(model, one.data, output)[0])
        divisors = _divisors(exact, model, one)
    product = squared = own = 0.0
    for left, right in zip(trained, slopes, strict=True):
        left, right = _or_zero(left, right), _or_zero(right, left) * loss_weight
        product += float((left * right).sum())
        squared += float(left.square().sum())
        own += float(right.square().sum())
    ratio = (squared / own) ** 0.5 if own else 1.0 if squared == own else float("inf")
    cosine = product / (squared * own) ** 0.5 if squared and own else float(squared == own)
    return _Compared(
        float("nan") if random else cosine,
        tuple(ratio * each for each in divisors),
        -float(first),
        loss_weight,
        float(output),
    )


def _divisors(task: Task, model: nn.Module, one: SampleBatch) -> list[float]:
    """What the loss of a sample alone may be divided by, although that of a batch is not: the number of terms that count, or of all, or the sum
    of their class weights."""
    if isinstance(task, SumOfMargins):
        terms = task.terms(model, one.data)
        return [
            1.0,
            float(terms.counted.sum()),
            float(terms.counted.numel()),
            float(terms.loss.right[terms.counted].sum()),
        ]
    if isinstance(task, Classification) and task.class_weight is not None:
        return [1.0, task.class_weight[int(task.class_labels(one.data)[0])]]
    return [1.0]


def _or_zero(gradient: Tensor | None, other: Tensor | None) -> Tensor:
    """A gradient in double precision; zero where there is none."""
    if gradient is not None:
        return gradient.detach().double()
    return torch.zeros(()) if other is None else torch.zeros_like(other, dtype=torch.float64)
