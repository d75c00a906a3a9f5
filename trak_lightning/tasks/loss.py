"""A task whose output is minus the loss that the model was trained with."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trak_lightning.data.samples import batch_size, take_sample
from trak_lightning.errors import (
    DataError,
    OneSampleAtATime,
    SettingsError,
    UnsupportedModelError,
    docs_page,
    require_option,
)
from trak_lightning.registry import imported
from trak_lightning.tasks.base import Task, current_size
from trak_lightning.tasks.fields import Inputs, all_tensors, describe, named_entries, select_entries
from trak_lightning.tasks.margin import is_wrapped
from trak_lightning.tasks.state import to_json

LossFunction = Callable[[nn.Module, Any], Tensor]
"""Maps a model and a batch to the loss: per sample, (B,), or one number for the batch."""


class Loss(Task):
    """``f = −ℓ``: minus the loss of every sample, so that gradients are those of training. q = 1 and r = 0.

    A function that returns a loss per sample, (B,), is called once per batch. One that returns a single number for the batch
    is called once per sample, with a batch of one. So is a model that computes its own loss, such as those of
    ``transformers`` when they are given labels. The loss of the batch must then be the mean or the sum of the losses of its
    samples. It is neither if the loss divides by class weights or by the number of tokens in the batch
    (``CrossEntropyLoss(weight=…)``, ``ignore_index``), or compares samples with each other: in a batch of one, the class
    weight cancels.

    Since r = 0, use scores weighted with ``residual``, the default, or ``fisher``.

    Args:
        function: ``(model, batch) → loss``, or its import path, ``package.module.function`` or ``package.module:function``. ``training_step`` to
            use the ``training_step`` of the attributed LightningModule, without its logging. If None, the model is called
            with the entries of the batch as keyword arguments, and its output must have an attribute or entry ``loss``. A
            partial or a closure is recorded together with the values bound to it.
        inputs: without a function, the entries of a batch that the model is called with, labels among them; all tensors
            if None.
        single_losses: ``checked`` refuses a batch loss that is neither the mean nor the sum of the losses of its samples, each
            in a batch of one; ``trusted`` attributes these losses without the check.
    """

    loss_function: ClassVar[str] = "linear"

    def __init__(
        self,
        function: str | LossFunction | None = None,
        inputs: Inputs = None,
        single_losses: Literal["checked", "trusted"] = "checked",
    ) -> None:
        require_option("single_losses", single_losses, ("checked", "trusted"))
        self.inputs = to_json(inputs, "inputs")
        self.function = function
        self._single_losses = single_losses
        self._any_index = function != "training_step"
        self._function = (
            self._own if function is None else _resolve(function) if isinstance(function, str) else function
        )

    def output(self, model: nn.Module, batch: Any) -> Tensor:
        loss, told = _loss(self._function(model, batch)), current_size()
        size = batch_size(batch) if told is None else told
        if loss.shape == (size,):
            return -loss
        if loss.numel() != 1:
            raise DataError(
                f"the loss must be one number, or one per sample, ({size},); got a tensor of shape {tuple(loss.shape)}. "
                + _remedy(loss.shape, size)
            )
        if size == 1:
            return -loss.reshape(1)
        if told is not None:
            raise OneSampleAtATime(
                f"the loss function returned one number for a batch of {size} samples, and attribution needs the loss of each. "
                "Use extractor='auto' or 'iterative', which compute one sample at a time, or return a loss per sample, (B,): "
                "reduction='none'.",
                whole=-loss.detach().reshape(()),
            )
        alone = (_loss(self._function(model, take_sample(batch, sample, size))) for sample in range(size))
        outputs = -torch.stack([loss.reshape(()) for loss in alone])
        self.require_agreement(-loss, outputs)
        return outputs

    def loss_weight_and_curvature(self, model: nn.Module, batch: Any, output: Tensor) -> tuple[Tensor, Tensor]:
        if not self._any_index:
            self._any_index = True
            self._require_any_index(model, batch, output)
        return super().loss_weight_and_curvature(model, batch, output)

    def _require_any_index(self, model: nn.Module, batch: Any, output: Tensor) -> None:
        """The loss must not depend on ``batch_idx``, which was 0."""
        loss, expected = _loss(training_step(model, batch, 1)).flatten(), -output.detach()
        differs = loss.shape != expected.shape
        if differs or (loss - expected).abs().max() > _tolerance(loss) * expected.abs().max():
            raise SettingsError(
                f"training_step of {type(model).__name__} weights losses by batch_idx: that of the same samples is "
                f"{float(expected.mean()):.6g} at batch_idx 0 and {float(loss.mean()):.6g} at 1. Which of these was trained with nothing says. {_OWN}"
            )

    def require_agreement(self, whole: Tensor, outputs: Tensor) -> None:
        """The loss of the batch must be the mean or the sum of the losses of its samples, unless `single_losses` are trusted."""
        if self._single_losses == "trusted" or is_wrapped(whole) or is_wrapped(outputs):
            return
        loss, single = -whole.detach().reshape(()).to(outputs), -outputs.detach()
        # Not with allclose: rounding is relative to the losses that are added, not to a sum that may cancel.
        expected, scale = single.mean(), single.abs().mean()
        tolerance = _tolerance(whole) * scale
        if not loss.isfinite():
            return  # refused by name where outputs are looked at
        if not ((loss - expected).abs() <= tolerance or (loss - single.sum()).abs() <= tolerance * len(single)):
            raise DataError(
                f"the loss of a batch of {len(single)} samples is {loss:.6g}, which is neither the mean ({expected:.6g}) nor the sum "
                f"({single.sum():.6g}) of the losses of its samples in batches of one. The loss function normalizes over the batch (class "
                "weights; tokens or pixels that ignore_index or padding leaves out), or compares samples with each other. Use "
                "the task that has these as options (class_weight of image_classification and text_classification; "
                "class_weight and ignore_index of token_classification, segmentation and causal_lm; contrastive for pairs); "
                "or return the loss of each sample, (B,), such as cross_entropy(…, weight=…, reduction='none'); or attribute "
                "the losses in batches of one: task: {name: loss, function: …, single_losses: trusted}."
            )

    def _own(self, model: nn.Module, batch: Any) -> Any:
        """What the model returns that is called with the entries of a batch by name, labels among them."""
        if self.inputs is not None:
            return select_entries(batch, self.inputs).call(model)
        return all_tensors(batch, hint="or name a function: task: {name: loss, function: …}").call(model)


_OWN = "Write a function (model, batch) → loss of each sample, (B,), and name it: task: {name: loss, function: package.module.function}."


def training_step(model: nn.Module, batch: Any, batch_idx: int = 0) -> Any:
    """What ``training_step`` of a LightningModule returns, without what it logs.

    Raises:
        UnsupportedModelError: this is no module with a training step, or a stand-in for one, which has no methods.
    """
    step = getattr(model, "training_step", None)
    if step is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no training_step, which task loss is to call. Under extractor functional no model has; "
            "auto and iterative call it."
        )
    if getattr(model, "automatic_optimization", True) is False:
        raise UnsupportedModelError(
            f"{type(model).__name__} optimizes manually (automatic_optimization = False): its training_step would change the weights. {_OWN}"
        )
    with _without_logging(model):
        try:
            return step(batch, batch_idx) if len(inspect.signature(step).parameters) > 1 else step(batch)
        except (AttributeError, TypeError) as error:
            raise UnsupportedModelError(
                f"training_step of {type(model).__name__} fails without training: {type(error).__name__}: {error}. Does it use the "
                f"trainer or the optimizers? {_OWN}"
            ) from error


@contextmanager
def _without_logging(model: nn.Module) -> Iterator[None]:
    # Lightning refuses to log where nothing is being trained.
    names = [name for name in ("log", "log_dict") if hasattr(model, name) and name not in vars(model)]
    for name in names:
        setattr(model, name, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)


def _tolerance(loss: Tensor) -> float:
    """Relative rounding error of a loss in the precision that it was computed in."""
    if loss.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(loss.device.type):
        return 3e-2
    return 1e-6 if loss.dtype == torch.float64 else 1e-3


def _loss(returned: Any) -> Tensor:
    named = named_entries(returned)
    loss = returned if named is None else named.get("loss")
    if not isinstance(loss, Tensor):
        raise DataError(
            f"the loss function must return a tensor, or something with a 'loss'; it returned {describe(returned)}. A dict of "
            "several losses must say how they are added up: write a function that returns their sum."
        )
    return loss


def _resolve(path: str) -> LossFunction:
    if path == "training_step":
        return training_step
    try:
        function: Any = imported(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"there is no function {path!r}: {error}. Write package.module.function, or training_step."
        ) from error
    if not callable(function):
        raise SettingsError(f"{path} is a {type(function).__name__} and no function of (model, batch)")
    return function


def _remedy(shape: Sequence[int], size: int) -> str:
    """What to do with a loss of this shape for a batch of `size` samples."""
    if len(shape) > 1:
        dim = shape.index(size) if size in shape else 0
        first = "loss" if dim == 0 else f"loss.transpose(0, {dim})"
        return (
            "For a loss per token, pixel or time step, take the mean or sum over all dimensions but that of the samples: "
            f"{first}.flatten(1).mean(1)."
        )
    if size == 1:
        return (
            "If its entries are parts of the sample, take their mean or sum; if they are samples, such as the nodes of one graph, see "
            f"{docs_page('recipes', 'The nodes of one graph')}."
        )
    flat = f" If samples were flattened, loss.unflatten(0, ({size}, -1)).mean(1)." if shape[0] % size == 0 else ""
    return (
        f"The mean or sum was taken over the dimension of the samples. Keep the dimension with {size} entries: if time comes first, (T, B), "
        f"(model(x) - y).square().mean(0).{flat}"
    )
