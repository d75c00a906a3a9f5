"""Clear the values that modules keep between calls outside of parameters and buffers, which loading a checkpoint does not change.

A module may cache features, fused weights or masks in its attributes. What was computed from other weights than the
present ones must not reach a gradient.
"""

import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trak_lightning.model.module_state import (
    StateAttribute,
    SteadyState,
    contents_of,
    function_caches,
    is_object,
    state_attributes,
)


def filled(model: nn.Module) -> list[StateAttribute]:
    """The attributes in which modules of `model` hold tensors or arrays other than parameters and buffers."""
    own = {id(tensor) for tensors in (model.parameters(), model.buffers()) for tensor in tensors}
    return [place for place in state_attributes(model) if _holds(place.value, own, set())]


def clear_caches(model: nn.Module, output: Callable[[], Tensor]) -> None:
    """Clear what modules computed from other weights; `output` computes the model's outputs on some batch.

    An attribute is a cache if the model fills it again once it is cleared. Everything else is left as it was before.
    """
    before = SteadyState(model)
    with torch.no_grad(), suppress(Exception):  # what cannot be computed is refused by name later
        output()  # fills the caches of a model that was not used before
    for cache in function_caches(model):
        cache.cache_clear()
    kinds: dict[tuple[type, str], list[StateAttribute]] = {}
    for place in filled(model):
        kinds.setdefault(place.kind, []).append(place)
    caches = [place for places in kinds.values() if _refilled(model, places, output) for place in places]
    before.restore()
    for place in caches:
        if place.name in place.attributes:
            _empty(place)


def _refilled(model: nn.Module, places: list[StateAttribute], output: Callable[[], Tensor]) -> bool:
    """Whether the model fills these attributes again after they are cleared; if not, their values are put back."""
    own = {id(tensor) for tensors in (model.parameters(), model.buffers()) for tensor in tensors}
    before = [(place, place.value) for place in places]
    for clear in (_empty, _remove):
        for place in places:
            clear(place)
        try:
            with torch.no_grad():
                output()
        except Exception:  # it cannot do without: a constant, unless removing it altogether is what it expects
            again = False
        else:
            again = any(_holds(place.value, own, set()) for place in places)
        if again:
            return True
        for place, value in before:
            place.attributes[place.name] = value
    return False


def _empty(place: StateAttribute) -> None:
    contents = contents_of(place.value)
    if contents is not None:
        contents.clear()
        place.attributes[place.name] = contents
    elif isinstance(getattr(place.kind[0], place.name, None), functools.cached_property):
        _remove(place)
    else:
        place.attributes[place.name] = None


def _remove(place: StateAttribute) -> None:
    place.attributes.pop(place.name, None)


def _holds(value: Any, own: set[int], seen: set[int]) -> bool:
    """Whether there is a tensor or an array in `value` that is not one of `own`."""
    if isinstance(value, (Tensor, np.ndarray)):
        return id(value) not in own
    if id(value) in seen or isinstance(value, (nn.Module, str, bytes, type)) or value is None:
        return False
    seen.add(id(value))
    if isinstance(value, dict):
        return any(_holds(item, own, seen) for item in value.values())
    if isinstance(value, (list, tuple, set)):
        return any(_holds(item, own, seen) for item in value)
    return is_object(value) and _holds(vars(value), own, seen)
