"""Steps of PyTorch's optimizers as differentiable functions of parameters, state and gradients.

Training is replayed with PyTorch's own optimizers. These functions are used for derivatives only, so they need the values of
`torch.optim` up to rounding, not to the bit.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from trak_lightning.errors import UnsupportedModelError

Step = Callable[[Tensor, Tensor, Sequence[Tensor], int, Mapping[str, Any]], tuple[Tensor, list[Tensor]]]
"""``step(parameter, gradient, state, count, options)`` returns the new parameter and state; `count` steps came before."""

REFUSED_OPTIONS = ("amsgrad", "maximize", "capturable", "differentiable")


class Rule(NamedTuple):
    """How an optimizer updates a parameter."""

    state: tuple[str, ...]
    """The tensors that it keeps for each parameter, by their names in ``optimizer.state``."""
    step: Step


def _sgd(
    parameter: Tensor, gradient: Tensor, state: Sequence[Tensor], count: int, options: Mapping[str, Any]
) -> tuple[Tensor, list[Tensor]]:
    gradient = gradient + options["weight_decay"] * parameter
    momentum = options["momentum"]
    if not momentum:
        return parameter - options["lr"] * gradient, list(state)
    # The first step fills the buffer with the gradient itself, whatever the dampening.
    buffer = momentum * state[0] + (1 - options["dampening"] if count else 1) * gradient
    direction = gradient + momentum * buffer if options["nesterov"] else buffer
    return parameter - options["lr"] * direction, [buffer]


def _adam(
    parameter: Tensor,
    gradient: Tensor,
    state: Sequence[Tensor],
    count: int,
    options: Mapping[str, Any],
    *,
    decoupled: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    lr, (beta1, beta2), decay = options["lr"], options["betas"], options["weight_decay"]
    if decoupled or options.get("decoupled_weight_decay"):  # an option of Adam since torch 2.7
        parameter = parameter * (1 - lr * decay)
    else:
        gradient = gradient + decay * parameter
    first = beta1 * state[0] + (1 - beta1) * gradient
    second = beta2 * state[1] + (1 - beta2) * gradient**2
    # The square root has no derivative at zero, where a parameter has never had a gradient; there it stays zero.
    touched = second > 0
    root = torch.where(touched, torch.where(touched, second, 1.0).sqrt(), 0.0)
    scale = root / (1 - beta2 ** (count + 1)) ** 0.5 + options["eps"]
    return parameter - lr / (1 - beta1 ** (count + 1)) * first / scale, [first, second]


RULES: dict[type[Optimizer], Rule] = {
    SGD: Rule(("momentum_buffer",), _sgd),
    Adam: Rule(("exp_avg", "exp_avg_sq"), _adam),
    AdamW: Rule(("exp_avg", "exp_avg_sq"), partial(_adam, decoupled=True)),
}


def require_differentiable(optimizer: Optimizer) -> None:
    """Check that steps of this optimizer can be differentiated.

    Raises:
        UnsupportedModelError: another optimizer, or an option that is not supported; names it.
    """
    known = ", ".join(each.__name__ for each in RULES)
    if type(optimizer) not in RULES:
        raise UnsupportedModelError(
            f"steps of {type(optimizer).__name__} cannot be differentiated; those of {known} can. Train with one of these."
        )
    for group in optimizer.param_groups:
        for name in REFUSED_OPTIONS:
            if group.get(name):
                raise UnsupportedModelError(
                    f"{type(optimizer).__name__} has {name}={group[name]}, whose steps cannot be differentiated. Train without."
                )
        if isinstance(group["lr"], Tensor):
            raise UnsupportedModelError("the learning rate is a tensor; give the optimizer a number")


def clipped(gradients: Sequence[Tensor], value: float | None, algorithm: str) -> list[Tensor]:
    """Clip gradients as Lightning does, by their common ``norm`` or each ``value``; as they are if `value` is None."""
    if not value:
        return list(gradients)
    if algorithm == "value":
        return [gradient.clamp(-value, value) for gradient in gradients]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    factor = (value / (norm + 1e-6)).clamp(max=1.0)
    return [factor * gradient for gradient in gradients]
