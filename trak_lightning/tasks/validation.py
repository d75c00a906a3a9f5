"""Check early that labels fit predictions, and bring labels and options into one form."""

from typing import Any

from torch import Tensor

from trak_lightning.errors import DataError, SettingsError
from trak_lightning.tasks.margin import is_wrapped
from trak_lightning.tasks.state import to_json


def number(value: Any, name: str) -> float:
    """An option that is one number: a number, or a tensor or an array of one element."""
    found = to_json(value, name)
    while isinstance(found, list) and len(found) == 1:
        found = found[0]
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise SettingsError(f"{name} must be a number, got {value!r}")
    return found


def numbers(value: Any, name: str) -> list[float] | None:
    """An option that is a number per class or label: a list, a tuple, a tensor or an array. None stays None."""
    if value is None:
        return None
    found = to_json(value, name)
    if not isinstance(found, list):
        raise SettingsError(f"{name} must be a list of numbers, one per class, got {value!r}")
    return [number(item, name) for item in found]


def class_labels(labels: Tensor, ndim: int) -> Tensor:
    """Class indices as int64, with `ndim` dimensions: from integers of any width or bool, from (…, 1), or from one-hot rows.

    Raises:
        DataError: labels have one dimension more, and are not one-hot.
    """
    if labels.ndim == ndim + 1 and labels.shape[-1] == 1:
        labels = labels.squeeze(-1)
    if labels.ndim != ndim + 1:
        return labels if labels.dtype.is_floating_point else labels.long()
    ones = labels == 1
    one_hot = (ones | (labels == 0)).all(-1) & (ones.sum(-1) == 1)
    if is_wrapped(labels):
        return ones.long().argmax(-1).masked_fill(~one_hot, -1)  # `margin` makes NaN of a wrong label
    if not one_hot.all():
        place = tuple(int(position) for position in (~one_hot).nonzero()[0])
        raise DataError(
            f"labels of shape {tuple(labels.shape)} hold one number per class, and are not one-hot at position {place}: "
            f"{[round(float(value), 4) for value in labels[place][:8]]}. For soft labels (mixup, distillation), use task loss with a "
            "function (model, batch) → loss per sample, such as cross_entropy(model(x), y, reduction='none'). For several labels "
            "per sample, use task multilabel. For class indices, give integers without that dimension."
        )
    return ones.long().argmax(-1)


def require_classes(logits: Tensor, labels: Tensor, *, ignore_index: int | None = None, term: str = "position") -> None:
    """Logits (…, C) and integer labels (…) in 0 … C−1, or `ignore_index`. `term` is what the second dimension of labels counts.

    Under vmap values cannot be looked at; `margin` makes NaN of a wrong label, and that is refused later.

    Raises:
        DataError: shapes or dtypes do not fit, or a label is out of range.
    """
    if logits.shape[-1] < 2:
        raise DataError(
            f"the model returns one logit, {tuple(logits.shape)}, where one per class was expected. For one logit per answer, "
            "use task binary_classification, or multilabel for several answers per sample; for a number to predict, regression."
        )
    if labels.dtype.is_floating_point or labels.shape != logits.shape[:-1]:
        remedy = ""
        if labels.shape == logits.shape[:-1]:
            remedy = " Convert class indices with .long(); for numbers to predict, use task regression."
        raise DataError(
            f"labels must be integers of shape {tuple(logits.shape[:-1])}, to go with logits of shape {tuple(logits.shape)}; "
            f"got {labels.dtype} of shape {tuple(labels.shape)}.{remedy}"
        )
    if is_wrapped(labels):
        return
    classes = logits.shape[-1]
    outside = (labels < 0) | (labels >= classes)
    if ignore_index is not None:
        outside &= labels != ignore_index
    if outside.any():
        place, found = outside.nonzero()[0].tolist(), int(labels[outside][0])
        where = [f"sample {place[0]} of the batch"] * (len(labels) > 1)
        where += [f"{term} {number}{', counted row by row' * (term == 'pixel')}" for number in place[1:]]
        shown = f" ({', '.join(where)})" if where else ""
        unknown = ignore_index is not None and not 0 <= found <= classes and bool((labels[outside] == found).all())
        raise DataError(
            f"label {found} is out of range: the model returns {classes} logits, so labels must lie in "
            f"0 … {classes - 1}{'' if ignore_index is None else f', or be {ignore_index}'}{shown}."
            + f" If {found} marks what has no label, set the option of the task: ignore_index: {found}."
            * unknown
        )


def require_binary(logits: Tensor, labels: Tensor, counted: Tensor | None = None) -> None:
    """Logits and labels of the same shape; labels 0 or 1 where they count.

    Raises:
        DataError: shapes do not fit, or a label is neither.
    """
    if labels.shape != logits.shape:
        raise DataError(
            f"labels must have the shape of the logits, {tuple(logits.shape)}; got {tuple(labels.shape)}. For one logit per "
            "class and one class per sample, use the task text_classification or image_classification; for several labels "
            "per sample, multilabel."
        )
    if is_wrapped(labels):
        return
    wrong = (labels != 0) & (labels != 1)
    if counted is not None:
        wrong &= counted
    if wrong.any():
        soft = labels.dtype.is_floating_point and bool(((labels > 0) & (labels < 1) & wrong).any())
        remedy = (
            " For soft labels, use task loss with binary_cross_entropy_with_logits(…, reduction='none')."
            if soft
            else ""
        )
        raise DataError(f"labels must be 0 or 1, got {labels[wrong][0].item()}.{remedy}")
