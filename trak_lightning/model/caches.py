"""Values that modules keep between calls outside of parameters and buffers, which loading a checkpoint does not change.

A module may cache features, fused weights or masks in its attributes. What was computed from other weights than the
present ones must not reach a gradient.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from trak_lightning.errors import SampleDependenceError

_INTERNAL = {*vars(nn.Module()), *vars(L.LightningModule())}
"""Attributes that every module has."""


@dataclass(frozen=True)
class _Place:
    """An attribute of a module, or of an object in one."""

    owner: str
    kind: tuple[type, str]
    """Class and attribute: what all modules of a class keep is cleared together."""
    attributes: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kind[1]

    @property
    def value(self) -> Any:
        return self.attributes.get(self.name)

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}" if self.owner else self.name


class CacheState:
    """What the modules of a model keep between calls, to be restored."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = [(p.attributes, p.name, p.value, _contents(p.value)) for p in _places(model)]

    def restore(self) -> None:
        """Put the values of before back, and remove those that came since."""
        _clear_function_caches(self._model)
        known = {(id(attributes), name) for attributes, name, _, _ in self._before}
        for place in filled(self._model):
            if (id(place.attributes), place.name) not in known:
                del place.attributes[place.name]
        for attributes, name, value, contents in self._before:
            if contents is not None:
                _refill(value, contents)
            if attributes.get(name) is not value:
                attributes[name] = value


def filled(model: nn.Module) -> list[_Place]:
    """The attributes in which modules of `model` hold tensors or arrays other than parameters and buffers."""
    own = {id(tensor) for tensors in (model.parameters(), model.buffers()) for tensor in tensors}
    return [place for place in _places(model) if _holds(place.value, own, set())]


def clear_caches(model: nn.Module, output: Callable[[], Tensor]) -> None:
    """Clear what modules computed from other weights; `output` computes the model's outputs on some batch.

    An attribute is a cache if the model fills it again once it is cleared; others are constants, and put back.

    Raises:
        SampleDependenceError: a second pass over the same samples has another gradient than the first one.
    """
    _clear_function_caches(model)
    kinds: dict[tuple[type, str], list[_Place]] = {}
    for place in filled(model):
        kinds.setdefault(place.kind, []).append(place)
    caches = [place for places in kinds.values() if _refilled(model, places, output) for place in places]
    if not caches:
        return
    for place in caches:
        _empty(place)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    first = _gradients(output, parameters)
    try:
        second = _gradients(output, parameters)
        same = all(
            torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))
            for a, b in zip(first, second, strict=True)
        )
    except RuntimeError:  # backward through a graph that the first pass has freed
        same = False
    if not same:
        raise SampleDependenceError(
            f"{type(model).__name__} keeps computed values between calls in {', '.join(map(str, caches[:3]))}, and no gradient "
            "flows through them when the same sample comes again. Turn this cache off, or keep only what depends on frozen "
            "parameters."
        )


def _refilled(model: nn.Module, places: list[_Place], output: Callable[[], Tensor]) -> bool:
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


def _empty(place: _Place) -> None:
    contents = _contents(place.value)
    if contents is not None:
        contents.clear()
        place.attributes[place.name] = contents
    elif isinstance(getattr(place.kind[0], place.name, None), functools.cached_property):
        _remove(place)
    else:
        place.attributes[place.name] = None


def _remove(place: _Place) -> None:
    place.attributes.pop(place.name, None)


def _gradients(output: Callable[[], Tensor], parameters: list[nn.Parameter]) -> list[Tensor]:
    with torch.enable_grad():
        total = output().sum()
        if not total.requires_grad:
            return []
        found = torch.autograd.grad(total, parameters, allow_unused=True)
    return [
        torch.zeros_like(parameter) if grad is None else grad.to_dense()
        for parameter, grad in zip(parameters, found, strict=True)
    ]


def _clear_function_caches(model: nn.Module) -> None:
    """Clear methods under ``functools.lru_cache``."""
    for cls in {base for module in model.modules() for base in type(module).__mro__}:
        for value in vars(cls).values():
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()


def _places(model: nn.Module) -> Iterator[_Place]:
    seen: set[int] = set()
    for name, module in model.named_modules():
        yield from _attributes(name, module, seen)


def _attributes(owner: str, holder: Any, seen: set[int]) -> Iterator[_Place]:
    for name, value in list(vars(holder).items()):
        if isinstance(holder, nn.Module) and (name in _INTERNAL or isinstance(value, L.LightningDataModule)):
            continue
        if _is_object(value):
            if id(value) not in seen:
                seen.add(id(value))
                yield from _attributes(f"{owner}.{name}" if owner else name, value, seen)
        else:
            yield _Place(owner, (type(holder), name), vars(holder))


def _is_object(value: Any) -> bool:
    return (
        not isinstance(value, (nn.Module, Tensor, np.ndarray, type, dict, list, set, tuple))
        and not callable(value)
        and isinstance(getattr(value, "__dict__", None), dict)
    )


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
    return _is_object(value) and _holds(vars(value), own, seen)


def _contents(value: Any) -> Any:
    """A shallow copy of a container that can change in place; None for anything else."""
    return copy.copy(value) if isinstance(value, (dict, list, set)) else None


def _refill(container: Any, contents: Any) -> None:
    container.clear()
    container.extend(contents) if isinstance(container, list) else container.update(contents)
