"""Compare the hyperparameters in a checkpoint with those of the module that it is loaded into."""

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from torch import nn

from trak_lightning.data.content import content_hash

_OF_TRAINING = re.compile(
    r"(^|[._])(training|gradient_checkpointing|steps?|epochs?|iter(ation)?s?|counte?r?|best|lr|learning_rate|weight_decay|betas?|momentum|optimi[sz]er|optim|(lr_)?sched(uler)?|warmup|epochs|batch_size|"
    r"num_workers|seed|compile)([._]|$)|_token_ids?$|^(torch_)?dtype$|^(transformers_version|architectures|use_cache|problem_type|id2label|label2id)\b"
)
"""Names of what leads to the weights, and of what a model of ``transformers`` keeps in its configuration; neither is part of the
function that the weights make."""


def contradictions(saved: Any, model: nn.Module) -> list[str]:
    """How the settings that a module was made with differ from those `saved` with a checkpoint: weights of the same shapes make another
    function with another activation, temperature or number of heads.

    Numbers, strings, bools and None are compared, also in lists and mappings, where both have them; what is only about training,
    such as a learning rate, is not.
    """
    own = dict(_plain(settings_of(model)))
    return [
        f"{name} is {value!r} in the checkpoint and {own[name]!r} in the model"
        for name, value in _plain(saved)
        if name in own and own[name] != value and not _OF_TRAINING.search(name)
    ]


def settings_of(model: nn.Module) -> dict[str, Any]:
    """The ``hparams`` of a module, the ``config`` of a model of ``transformers`` in it, the layers of torch without parameters, and the
    attributes of all modules, with hashes of buffers that no state dict holds."""
    configs = (getattr(getattr(module, "config", None), "to_dict", None) for module in model.modules())
    config: dict[str, Any] = next((to_dict() for to_dict in configs if callable(to_dict)), {})
    layers = {name: repr(each) for name, each in model.named_modules() if name and _is_function(each)}
    attributes = {
        f"{name}.{key}".lstrip("."): value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if not key.startswith("_") and not _is_function(module)
    }
    buffers = {
        f"{name}.{key}".lstrip("."): f"content {content_hash(module._buffers[key]):x}"
        for name, module in model.named_modules()
        for key in module._non_persistent_buffers_set
        if module._buffers.get(key) is not None
    }
    return {**attributes, **layers, **buffers, **config, **dict(getattr(model, "hparams", {}))}


def _is_function(module: nn.Module) -> bool:
    own = next(chain(module.parameters(), module.children()), None) is None
    return own and type(module).__module__.startswith("torch.nn.")


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
