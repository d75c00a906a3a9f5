"""Clear the values that modules keep between calls outside of parameters and buffers, which loading a checkpoint does not change.

A module may cache features, fused weights or masks in its attributes. What was computed from other weights than the
present ones must not reach a gradient.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trak_lightning.model.module_state import (
    FOLLOWED,
    StateAttribute,
    SteadyState,
    contents_of,
    function_caches,
    parts_of,
    reached,
    state_attributes,
)

_MANY = 16
"""The entries of a larger container are not tried one by one."""


def filled(model: nn.Module) -> list[StateAttribute]:
    """The attributes in which modules of `model` hold tensors or arrays other than parameters and buffers."""
    own = _own(model)
    return [place for place in state_attributes(model) if _holds(place.value, own)]


def clear_caches(model: nn.Module, output: Callable[[], Tensor]) -> None:
    """Clear what modules computed from other weights; `output` computes the model's outputs on some batch.

    An attribute is a cache if the model fills it again once it is cleared. Everything else is left as it was before.
    """
    before = SteadyState(model)
    with torch.no_grad(), suppress(Exception):  # what cannot be computed is refused by name later
        output()  # fills the caches of a model that was not used before
    for cache in function_caches(model):
        cache.cache_clear()
    filled_state = SteadyState(model, parameters=False)
    caches = list(_caches(model, filled(model), output, filled_state.restore))
    before.restore()
    for place in caches:
        if place.value is not None:
            _empty(place)


def _caches(
    model: nn.Module, places: Iterable[StateAttribute], output: Callable[[], Tensor], put_back: Callable[[], None]
) -> Iterator[StateAttribute]:
    """Those of these places that the model fills again; of a container that it does not, the entries that it does."""
    kinds: dict[tuple[Any, ...], list[StateAttribute]] = {}
    for place in places:
        kinds.setdefault(place.kind, []).append(place)
    own = _own(model)
    for group in kinds.values():
        if _refilled(group, own, output, put_back):
            yield from group
        else:
            inner = (entry for place in group for entry in _entries(place) if _holds(entry.value, own))
            yield from _caches(model, inner, output, put_back)


def _entries(place: StateAttribute) -> Iterator[StateAttribute]:
    """The entries of a container; those of a large one are cleared together."""
    value = place.value
    if isinstance(value, (dict, list, tuple, deque)):
        together = len(value) > _MANY
        for key, _ in parts_of(value)[:FOLLOWED]:
            yield StateAttribute(place.owner, (*place.kind, ... if together else key), value, key)


def _refilled(
    places: list[StateAttribute], own: set[int], output: Callable[[], Tensor], put_back: Callable[[], None]
) -> bool:
    """Whether the model fills these places again after they are cleared. Everything is put back."""
    for clear in (_empty, _remove):
        cleared = [clear(place) for place in places]
        if not all(cleared):
            continue
        try:
            with torch.no_grad():
                output()
        except Exception:  # it cannot do without: a constant, unless removing it altogether is what it expects
            again = False
        else:
            again = any(_holds(place.value, own) for place in places)
        put_back()
        if again:
            return True
    return False


def _empty(place: StateAttribute) -> bool:
    """Empty a place, if it can be: a container in place, since others may hold it, too."""
    if contents_of(place.value) is not None:
        place.value.clear()
    elif isinstance(getattr(place.kind[0], str(place.name), None), functools.cached_property):
        return _remove(place)
    elif isinstance(place.attributes, tuple):
        return False
    else:
        place.attributes[place.name] = None
    return True


def _remove(place: StateAttribute) -> bool:
    """Remove a name, if it can be."""
    if isinstance(place.attributes, MutableMapping):
        place.attributes.pop(place.name, None)
    return isinstance(place.attributes, MutableMapping)


def _own(model: nn.Module) -> set[int]:
    return {id(tensor) for tensors in (model.parameters(), model.buffers()) for tensor in tensors}


def _holds(value: Any, own: set[int]) -> bool:
    """Whether there is a tensor or an array in `value` that is not one of `own`."""
    values = [value, *(part for each in reached(value) for _, part in parts_of(each))]
    return any(isinstance(each, (Tensor, np.ndarray)) and id(each) not in own for each in values)
