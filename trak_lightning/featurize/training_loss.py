"""Notice that training_step computes another loss than that of the task."""

import logging
from weakref import WeakKeyDictionary

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import docs_page
from trak_lightning.extractors.iterative import sample_gradient
from trak_lightning.gradients import ParameterLayout
from trak_lightning.model.autocast import is_cast
from trak_lightning.stores.base import FeatureRows
from trak_lightning.tasks.base import Task, batch_of
from trak_lightning.tasks.binary import BinaryClassification
from trak_lightning.tasks.classification import Classification
from trak_lightning.tasks.loss import Loss
from trak_lightning.tasks.regression import Regression

log = logging.getLogger(__name__)

COMPARED = (Classification, BinaryClassification, Regression)
"""Tasks for which q·∇f is exactly minus the gradient of the loss of a sample."""

PARALLEL, ALIKE = 0.9, 1.5
"""The smallest cosine of the two gradients of a sample, and the largest ratio of their lengths' ratios over samples, that pass: weight decay
in the loss, or its scale, must not be noticed."""

SMALLEST = 1e-2
"""The smallest |q|, relative to the largest, of a sample that is compared: beside those below, weight decay is large."""

CLASSES = 4
"""Of how many classes a sample is compared, since a class may have a weight."""

_SEEN: WeakKeyDictionary[nn.Module, set[type[Task]]] = WeakKeyDictionary()
"""Which tasks each model was compared with: once is enough."""


def warn_of_training_step(
    model: nn.Module, task: Task, layout: ParameterLayout, batch: SampleBatch, rows: FeatureRows
) -> None:
    """Compare q·∇f of some samples of a batch, with large, medium and small |q| and of several classes, with minus the gradient of the loss that training_step
    returns for each alone, and warn where it is another one: labels that it scales or smooths, classes that it weights, further terms."""
    step = getattr(type(model), "training_step", None)
    if step in (None, L.LightningModule.training_step) or not isinstance(task, COMPARED) or is_cast():
        return
    if getattr(task, "label_smoothing", 0):  # the gradient of a smoothed loss is not parallel to ∇f
        return
    if type(task) in _SEEN.setdefault(model, set()):
        return
    _SEEN[model].add(type(task))
    try:
        chosen = _chosen(rows, task, batch)
        found = [_compared(model, task, layout, batch.fetch([each]), rows.loss_weight[each]) for each in chosen]
    except (
        Exception
    ):  # the user's code, which may need a training that is under way, or batches of more than one sample
        return
    cosines, ratios = np.array(found).reshape(-1, 2).T
    if not len(found) or np.isnan(found).any():
        return
    if cosines.min() < PARALLEL or ratios.max() > ALIKE * ratios.min():
        log.warning(
            "task  training_step of %s has another loss than task %s: the gradients of some samples are %s times those of the task, with "
            "cosines %s; one factor is expected, and cosines of 1. Does it scale or smooth labels, weight classes, or add other terms? Set that "
            "option of the task, or use task loss with function: training_step (%s)",
            type(model).__name__,
            type(task).__name__,
            ", ".join(f"{ratio:.3g}" for ratio in ratios),
            ", ".join(f"{cosine:.2f}" for cosine in cosines),
            docs_page("trust", "The loss that you trained with"),
        )


def _chosen(rows: FeatureRows, task: Task, batch: SampleBatch) -> list[int]:
    """The positions of the samples with the largest, the middle and the smallest |q|, and with the largest of some classes."""
    sizes = np.abs(rows.loss_weight)
    order = [int(each) for each in np.argsort(-sizes, kind="stable") if sizes[each] > SMALLEST * sizes.max()]
    with batch_of(batch.size):
        labels = task.class_labels(batch.data)
    first = {} if labels is None else {int(labels[each]): each for each in reversed(order)}
    return sorted({order[0], order[len(order) // 2], order[-1], *list(first.values())[:CLASSES]}) if order else []


def _compared(
    model: nn.Module, task: Task, layout: ParameterLayout, one: SampleBatch, loss_weight: float
) -> tuple[float, float]:
    """The cosine of the gradients of the loss of training and of that of the task, and the ratio of their lengths; NaN where the loss of
    training is random."""
    training = Loss(function="training_step", single_losses="trusted")
    (first, trained), (again, _) = (sample_gradient(model, training, one, layout) for _ in range(2))
    mine = sample_gradient(model, task, one, layout)[1]
    if not torch.equal(first, again):
        return float("nan"), float("nan")
    product = squared = own = 0.0
    for left, right in zip(trained, mine, strict=True):
        left, right = _or_zero(left, right), _or_zero(right, left) * float(loss_weight)
        product += float((left * right).sum())
        squared += float(left.square().sum())
        own += float(right.square().sum())
    if not squared or not own:
        return (1.0 if squared == own else 0.0), (squared / own) ** 0.5 if own else float("inf")
    return product / (squared * own) ** 0.5, (squared / own) ** 0.5


def _or_zero(gradient: Tensor | None, other: Tensor | None) -> Tensor:
    """A gradient in double precision; zero where there is none."""
    if gradient is not None:
        return gradient.detach().double()
    return torch.zeros(()) if other is None else torch.zeros_like(other, dtype=torch.float64)
