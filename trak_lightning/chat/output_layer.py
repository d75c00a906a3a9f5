"""Attribute to the output layer of a language model alone: gradients without a backward pass through the rest."""

import logging
from functools import cache
from typing import Any

from torch import nn

from trak_lightning.errors import UnsupportedModelError

log = logging.getLogger(__name__)


def output_layer_only(model: nn.Module) -> nn.Module:
    """Let only the output layer of a model of `transformers` require a gradient, and return the model.

    Its gradient is ``Σ_t ∂f/∂logits_t ⊗ h_t`` over the tokens t of the answer, with last hidden states h, and needs no backward pass
    through the rest of the model. A weight that the layer shares with the embedding becomes a copy: the part of its gradient that goes
    through the embedding is left out. Checkpoints in which the weight is stored once still load.

    Raises:
        UnsupportedModelError: the model has no output layer.
    """
    whole: Any = model
    layer: nn.Module | None = whole.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    weight = getattr(layer, "weight", None)
    if layer is None or not isinstance(weight, nn.Parameter):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no output layer with a weight: get_output_embeddings() returns {layer!r}. Name the layer with "
            "parameters instead."
        )
    names = [name for name, found in model.named_parameters(remove_duplicate=False) if found is weight]
    own = next(name for name, module in model.named_modules() if module is layer) + ".weight"
    shared = [name for name in names if name != own]
    if shared:
        layer.weight = nn.Parameter(weight.detach().clone())

        def fill(_: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
            stored = state.get(prefix + shared[0])
            if stored is not None:
                state.setdefault(prefix + own, stored)

        model.register_load_state_dict_pre_hook(fill)
        _say_of_copy(type(model).__name__, own, shared[0])
    model.requires_grad_(False)
    layer.requires_grad_(True)
    return model


@cache
def _say_of_copy(model: str, own: str, shared: str) -> None:  # once: the model is made again and again
    log.warning(
        "output     %s is a copy of %s, which it was tied to: the part of the gradient through the embedding is left out",
        own,
        shared,
    )
