"""Compare the hyperparameters in a Lightning checkpoint with those of the module that it is loaded into."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

_OF_TRAINING = re.compile(
    r"(^|[._])(lr|learning_rate|weight_decay|betas?|momentum|optimi[sz]er|optim|(lr_)?sched(uler)?|warmup|epochs|batch_size|"
    r"num_workers|seed|compile)([._]|$)"
)
"""Names of what leads to the weights, and is not part of the function that they make."""


def contradictions(saved: Any, model: nn.Module) -> list[str]:
    """What a module was made with, by ``save_hyperparameters``, and how `saved`, the ``hyper_parameters`` of a checkpoint, differ:
    weights of the same shapes make another function with another activation or temperature.

    Numbers, strings, bools and None are compared, also in lists and mappings, where both have them; what is only about training,
    such as a learning rate, is not.
    """
    own = dict(_plain(getattr(model, "hparams", None)))
    return [
        f"{name} is {value!r} in the checkpoint and {own[name]!r} in the model"
        for name, value in _plain(saved)
        if name in own and own[name] != value and not _OF_TRAINING.search(name)
    ]


def _plain(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items() if isinstance(values, Mapping) else ():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _plain(value, f"{name}.")
        elif isinstance(value, (list, tuple)):
            if all(isinstance(item, (int, float, str, type(None))) for item in value):
                yield name, list(value)
        elif isinstance(value, (int, float, str, type(None))) and not str(key).startswith("_"):
            yield name, value
