"""Notice that a module was trained with a loss other than that of the task."""

from typing import Any

import torch
from torch import Tensor, nn

from trak_lightning.model.first_time import first_time
from trak_lightning.runtime.tracebacks import warn
from trak_lightning.tasks.base import Task
from trak_lightning.tasks.regression import Regression

_CLASSES = {"weight": "class_weight", "label_smoothing": "label_smoothing", "ignore_index": "ignore_index"}
_LABELS = {"pos_weight": "pos_weight"}
_OPTIONS: dict[type[nn.Module], dict[str, str]] = {
    nn.CrossEntropyLoss: _CLASSES,
    nn.NLLLoss: _CLASSES,
    nn.BCEWithLogitsLoss: _LABELS,
}
"""The options of a loss that change the gradient of a sample by more than a factor, and their names in tasks."""

_NOT_SQUARED = (nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss, nn.GaussianNLLLoss)


class CriterionWarning(UserWarning):
    """The module holds a loss that is not the one of the task."""


def warn_of_criterion(task: Task, model: nn.Module) -> None:
    """Warn of losses in `model`, such as ``self.criterion = nn.CrossEntropyLoss(weight=w)``, with options that `task` does not have."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        for attribute, option in _OPTIONS.get(type(module), {}).items():
            trained, told = getattr(module, attribute, None), getattr(task, option, None)
            if _knows(task, _OPTIONS[type(module)]) and not _same(attribute, trained, told):
                yours = (
                    f"set its option {option}" if hasattr(task, option) else f"it has no option {option}: use task loss"
                )
                _warn(
                    model,
                    f"{name} of {type(model).__name__} is a {kind} with {attribute}={_shown(trained)}, and task {type(task).__name__} "
                    f"computes loss weights with {option}={_shown(told)}. If that is the loss that the model was trained with, {yours}.",
                )
        if isinstance(task, Regression) and isinstance(module, _NOT_SQUARED):
            _warn(
                model,
                f"{name} of {type(model).__name__} is a {kind}, and task {type(task).__name__} computes loss weights of the squared error. "
                "If that is the loss that the model was trained with, use task loss with a function (model, batch) → loss of each sample.",
            )


def _knows(task: Task, options: dict[str, str]) -> bool:
    """Whether this is the task of such a loss."""
    return any(hasattr(task, option) for option in options.values())


def _same(attribute: str, trained: Any, told: Any) -> bool:
    if attribute == "ignore_index":
        return bool(trained == (-100 if told is None else told))
    default = 0.0 if attribute == "label_smoothing" else 1.0
    one, other = (_numbers(default if value is None else value) for value in (trained, told))
    if attribute == "weight":  # a mean over the batch divides by the weights
        one, other = one / one.mean(), other / other.mean()
    return (one.ndim == 0 or other.ndim == 0 or one.shape == other.shape) and torch.allclose(one, other, rtol=1e-4)


def _numbers(value: Any) -> Tensor:
    return torch.as_tensor(value).detach().double().cpu().squeeze()


def _shown(value: Any) -> str:
    if not isinstance(value, (Tensor, list)):
        return repr(value)
    numbers = [f"{number:.4g}" for number in _numbers(value).reshape(-1)[:6].tolist()]
    return f"[{', '.join(numbers)}{', …' if len(value) > len(numbers) else ''}]" if _numbers(value).ndim else numbers[0]


def _warn(model: nn.Module, message: str) -> None:
    if first_time(model, message):
        warn(message, CriterionWarning)
