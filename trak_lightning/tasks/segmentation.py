"""Images with a label per pixel: a multiclass problem per pixel."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from trak_lightning.errors import DataError, docs_page, require_option
from trak_lightning.tasks.fields import LABEL_NAMES, Inputs, Key
from trak_lightning.tasks.probabilities import OutputsAre
from trak_lightning.tasks.sum_of_margins import Reduction
from trak_lightning.tasks.tokens import IGNORE_INDEX, TokenMargins


class Segmentation(TokenMargins):
    """``f = mean_i log p_i``, minus the loss of the image, over the pixels i whose label is not `ignore_index`, and q = 1.

    The model returns logits (B, C, H, W), as ``CrossEntropyLoss`` takes them; labels are integers of any width, (B, H, W) or
    (B, 1, H, W), or one-hot (B, C, H, W). Volumes (B, C, D, H, W) and signals (B, C, L) work too. For one logit per pixel,
    (B, 1, H, W), use ``multilabel``. The other options are those of `TokenMargins`.

    Args:
        outputs: the entry of the model's output that holds the logits, such as ``out`` for models of torchvision.
        reduction: ``mean`` over the pixels of an image, or their ``sum``.
        level: ``pixel``, as above; ``image``: ``f = mean_i log(p_i / (1 − p_i))``, where pixels that are right outvote the few that
            are wrong, so that images with damaged masks may be scored as helpful.
        ignore_index: the label of pixels that do not count.
    """

    term: ClassVar[str] = "pixel"
    whose: ClassVar[str] = "the labels of the"
    label_names: ClassVar[Sequence[str]] = (*LABEL_NAMES, "masks", "mask")

    def __init__(
        self,
        inputs: Inputs = None,
        labels: Key | None = None,
        outputs: Key | None = None,
        reduction: Reduction = "mean",
        level: Literal["image", "pixel"] = "pixel",
        ignore_index: int = IGNORE_INDEX,
        class_weight: list[float] | None = None,
        label_smoothing: float = 0.0,
        outputs_are: OutputsAre = None,
    ) -> None:
        require_option("level", level, ("image", "pixel"))
        super().__init__(
            inputs,
            labels,
            outputs,
            reduction,
            "token" if level == "pixel" else "sequence",
            ignore_index,
            class_weight,
            label_smoothing,
            outputs_are,
        )
        self.level = level  # type: ignore[assignment]  # the name that users gave

    def tokens(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Compute logits (B, pixels, C), and find the labels (B, pixels) or one-hot labels (B, pixels, C)."""
        labels = self.targets(batch)
        logits = self.predict(model, batch, ndim=labels.ndim)
        if logits.ndim == labels.ndim and labels.shape == logits.shape:
            return _pixels(logits), _pixels(labels)
        if labels.ndim == logits.ndim and labels.ndim > 2 and labels.shape[1] == 1:
            labels = labels.squeeze(1)
        if labels.ndim == logits.ndim and len(labels) == 1:  # the model squeezed a single sample
            logits = logits.unsqueeze(0)
        _require_pixels(logits, labels)
        return _pixels(logits), labels.flatten(1)


def _pixels(values: Tensor) -> Tensor:
    """(B, pixels, C) from (B, C, …)."""
    return values.flatten(2).transpose(1, 2)


def _require_pixels(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim > 2 and logits.shape[1] == 1:
        raise DataError(
            f"the model returns one logit per pixel, {tuple(logits.shape)}, and segmentation expects one per class. Use task "
            "multilabel, with labels 0 or 1 of the same shape."
        )
    if logits.ndim < 3 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise DataError(
            f"the model must return logits of shape (B, classes, …) for labels of shape (B, …), such as (B, C, H, W) for "
            f"(B, H, W); got logits {tuple(logits.shape)} and labels {tuple(labels.shape)}. If they differ in resolution, resize "
            "the logits at the end of the model's forward, as the training loss does; if classes come last, use task "
            f"token_classification with flattened pixels; otherwise, task loss with a function of your own: {docs_page('recipes')}."
        )
