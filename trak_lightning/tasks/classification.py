"""Classification: the multiclass margin."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trak_lightning.errors import DataError
from trak_lightning.tasks.base import Task
from trak_lightning.tasks.margin import margin


class ImageClassification(Task):
    """Multiclass margin of an image classifier: ``f = log(p_y / (1 − p_y)) = logit_y − logsumexp(other logits)``.

    Loss weight q = 1 − p_y and curvature r = p_y(1 − p_y) follow from f, since p_y = sigmoid(f). Park et al. 2023,
    section 3.1.

    A batch is a pair (images, labels), or a mapping with these two under `input_key` and `label_key`. The model maps
    images to logits (B, C); labels are integers (B,) in 0 … C−1.

    Args:
        input_key: where a mapping batch holds the images.
        label_key: where a mapping batch holds the labels.
    """

    def __init__(self, input_key: str = "image", label_key: str = "label") -> None:
        self.input_key = input_key
        self.label_key = label_key

    def output(self, model: nn.Module, batch: Any) -> Tensor:
        images, labels = self._unpack(batch)
        logits = model(images)
        _check_labels(logits, labels)
        return margin(logits, labels)

    def probabilities(self, model: nn.Module, batch: Any) -> Tensor:
        probabilities: Tensor = model(self._unpack(batch)[0]).softmax(dim=-1)
        return probabilities

    def _unpack(self, batch: Any) -> tuple[Tensor, Tensor]:
        if isinstance(batch, Mapping):
            missing = [key for key in (self.input_key, self.label_key) if key not in batch]
            if missing:
                raise DataError(
                    f"the batch has no key {missing[0]!r}; its keys are {sorted(map(str, batch))}. Name the right ones: "
                    "task={'name': 'image_classification', 'input_key': …, 'label_key': …}."
                )
            return batch[self.input_key], batch[self.label_key]
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            return batch[0], batch[1]
        raise DataError(
            f"image_classification expects batches (images, labels) or mappings, got {type(batch).__name__}"
            + (f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else "")
            + ". Return such pairs from the dataset, or write a Task with an `output` of your own."
        )


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2:
        raise DataError(f"the model must return logits of shape (B, classes), got {tuple(logits.shape)}")
    if labels.dtype.is_floating_point or labels.shape != logits.shape[:1]:
        raise DataError(
            f"labels must be integers of shape ({logits.shape[0]},), got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if torch._C._functorch.is_functorch_wrapped_tensor(labels):
        return  # under vmap values cannot be looked at; `margin` makes NaN of a wrong label, and that is refused
    classes = logits.shape[1]
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        raise DataError(
            f"label {int(labels[outside][0])} is out of range: the model returns {classes} logits, so labels must lie "
            f"in 0 … {classes - 1} (position {int(outside.nonzero()[0])} of the batch)."
        )
