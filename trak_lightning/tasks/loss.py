"""The loss itself, whatever it is."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trak_lightning.data.samples import batch_size, take_sample
from trak_lightning.errors import DataError, OneSampleAtATime, SettingsError, UnsupportedModelError
from trak_lightning.tasks.base import Task, current_size
from trak_lightning.tasks.fields import Inputs, as_named, describe, select, tensors

LossFunction = Callable[[nn.Module, Any], Tensor]
"""From a model and a batch to the loss: of every sample, (B,), or one number for the batch."""


class Loss(Task):
    """``f = −ℓ``: minus the loss of every sample, so that gradients are those of training. q = 1 and r = 0.

    A function that returns a loss for every sample, (B,), is called once a batch. One that returns a single number is called
    for each sample alone, which costs a pass a sample; so is a model that computes its own loss, such as those of
    ``transformers`` when they are given labels.

    Since r = 0, scores are to be weighted with ``residual``, the default, or ``fisher``.

    Args:
        function: ``(model, batch) → loss``, or its import path, ``package.module.function``. ``training_step`` for that of
            the LightningModule that is attributed, with its logging left out. If None, the model is called with the
            entries of the batch by name and must return something with a ``loss``.
        inputs: without a function, which entries of a batch the model is called with, labels among them; all tensors if None.
    """

    loss_function: ClassVar[str] = "linear"

    def __init__(self, function: str | LossFunction | None = None, inputs: Inputs = None) -> None:
        self.inputs = inputs
        if callable(function):
            self.function: str | None = f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"
            self._function: LossFunction = function
        else:
            self.function = function
            self._function = self._own if function is None else _resolve(function)

    def output(self, model: nn.Module, batch: Any) -> Tensor:
        loss, told = _loss(self._function(model, batch)), current_size()
        size = batch_size(batch) if told is None else told
        if loss.shape == (size,):
            return -loss
        if loss.numel() != 1:
            raise DataError(
                f"the loss must be one number, or one a sample, ({size},); got a tensor of shape {tuple(loss.shape)}"
            )
        if size == 1:
            return -loss.reshape(1)
        if told is not None:
            raise OneSampleAtATime(
                f"the loss function returned one number for a batch of {size} samples, and attribution needs the loss of each. "
                "Give it one sample at a time, or return a loss per sample, (B,): reduction='none'."
            )
        alone = (_loss(self._function(model, take_sample(batch, sample, size))) for sample in range(size))
        return -torch.stack([loss.reshape(()) for loss in alone])

    def loss_weight(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return torch.ones_like(output)

    def curvature(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    def _own(self, model: nn.Module, batch: Any) -> Any:
        """What the model returns that is called with the entries of a batch by name, labels among them."""
        if self.inputs is not None:
            return select(batch, self.inputs).call(model)
        return tensors(batch, hint="or name a function: task: {name: loss, function: …}").call(model)


def training_step(model: nn.Module, batch: Any) -> Any:
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
    with _without_logging(model):
        return step(batch, 0) if len(inspect.signature(step).parameters) > 1 else step(batch)


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


def _loss(returned: Any) -> Tensor:
    named = as_named(returned)
    loss = returned if named is None else named.get("loss")
    if not isinstance(loss, Tensor):
        raise DataError(
            f"a tensor was expected, or something with a loss, which is what is attributed; got {describe(returned)}"
        )
    return loss


def _resolve(path: str) -> LossFunction:
    if path == "training_step":
        return training_step
    module, _, name = path.rpartition(".")
    try:
        function: Any = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"there is no function {path!r}: {error}. Write package.module.function, or training_step."
        ) from error
    if not callable(function):
        raise SettingsError(f"{path} is a {type(function).__name__} and no function of (model, batch)")
    return function
