"""Do labels fit predictions? Said early, with the value seen and the values expected."""

from torch import Tensor

from trak_lightning.errors import DataError
from trak_lightning.tasks.margin import is_wrapped


def require_classes(logits: Tensor, labels: Tensor, *, ignore_index: int | None = None) -> None:
    """Logits (…, C) and integer labels (…) in 0 … C−1, or `ignore_index`.

    Under vmap values cannot be looked at; `margin` makes NaN of a wrong label, and that is refused later.

    Raises:
        DataError: shapes or dtypes do not fit, or a label is out of range.
    """
    if labels.dtype.is_floating_point or labels.shape != logits.shape[:-1]:
        raise DataError(
            f"labels must be integers of shape {tuple(logits.shape[:-1])}, to go with logits of shape {tuple(logits.shape)}; "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if is_wrapped(labels):
        return
    classes = logits.shape[-1]
    outside = (labels < 0) | (labels >= classes)
    if ignore_index is not None:
        outside &= labels != ignore_index
    if outside.any():
        place = tuple(int(position) for position in outside.nonzero()[0])
        where = place[0] if len(place) == 1 else place
        raise DataError(
            f"label {int(labels[outside][0])} is out of range: the model returns {classes} logits, so labels must lie in "
            f"0 … {classes - 1}{'' if ignore_index is None else f', or be {ignore_index}'} (position {where} of the batch)."
        )


def require_binary(logits: Tensor, labels: Tensor, counted: Tensor | None = None) -> None:
    """Logits and labels of the same shape; labels 0 or 1 where they count.

    Raises:
        DataError: shapes do not fit, or a label is neither.
    """
    if labels.shape != logits.shape:
        raise DataError(
            f"labels must have the shape of the logits, {tuple(logits.shape)}; got {tuple(labels.shape)}. For one logit a "
            "class and one class a sample, use the task text_classification or image_classification."
        )
    if is_wrapped(labels):
        return
    wrong = (labels != 0) & (labels != 1)
    if counted is not None:
        wrong &= counted
    if wrong.any():
        raise DataError(f"labels must be 0 or 1, got {labels[wrong][0].item()}")
