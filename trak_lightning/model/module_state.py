"""Begin every pass with the state that the checkpoint has, whatever earlier passes have changed."""

import copy
import functools
import random
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from operator import is_
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from trak_lightning.errors import UnsupportedModelError
from trak_lightning.model.dtensor import any_sharded
from trak_lightning.model.quantized import quantized

_INTERNAL = {*vars(nn.Module()), *vars(L.LightningModule())}
"""Attributes that every module has."""


@dataclass(frozen=True)
class StateAttribute:
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


_WATCHED = 8
"""In so many passes tensors are compared by value, which shows changes through ``.data``; later, by version and memory."""


class SteadyState:
    """What modules hold: buffers, attributes (a step counter, a memory of earlier batches), what is under ``lru_cache``, modules
    that a forward pass replaces, and parameters that it changes (the momentum encoder of MoCo). A gradient must not depend on how
    many batches came before.

    Memory: a copy of the parameters during the first passes.
    """

    def __init__(self, model: nn.Module, *, parameters: bool = True) -> None:
        self._model = model
        self._function_caches = function_caches(model)
        self._attributes = [
            (place.attributes, place.name, place.value, contents_of(place.value)) for place in state_attributes(model)
        ]
        holders = [vars(module) for module in model.modules()] + [attributes for attributes, *_ in self._attributes]
        self._names = {id(attributes): (attributes, set(attributes)) for attributes in holders}
        self._buffers = [
            (module._buffers, name, buffer)
            for module in model.modules()
            if not isinstance(module, torch.jit.ScriptModule)
            for name, buffer in module._buffers.items()
        ]
        self._parts = [
            (parts, dict(parts))
            for module in model.modules()
            if not isinstance(module, torch.jit.ScriptModule)
            for parts in (module._modules, module._parameters)
        ]
        self._tensors = {id(tensor): _Kept(tensor) for tensor in self._all_tensors()}
        self._sharded = any_sharded(model.parameters())
        watched = parameters and not self._sharded
        self._parameters = {name: _Kept(each) for name, each in model.named_parameters()} if watched else {}
        self._passes = 0

    def restore(self) -> None:
        """Put everything back as it was, in place.

        Raises:
            UnsupportedModelError: a parameter was changed by a later pass and by none of the first ones, or a pass made or replaced some.
        """
        for cache in self._function_caches:
            cache.cache_clear()
        for attributes, name, value, contents in self._attributes:
            if name not in attributes or attributes[name] is not value:
                attributes[name] = value
            if contents is not None and not _same_items(value, contents):
                _refill(value, contents)
        for attributes, names in self._names.values():
            if len(attributes) != len(names) and not self._sharded:  # sharding adds attributes of its own
                for name in attributes.keys() - names - _INTERNAL:
                    if not callable(attributes[name]):
                        del attributes[name]
        for buffers, name, buffer in self._buffers:
            if buffers.get(name) is not buffer:
                buffers[name] = buffer
        if not self._sharded:
            self._restore_parts()
        by_value = self._passes < _WATCHED
        for kept in self._tensors.values():
            kept.restore(by_value)
        for name, kept in self._parameters.items():
            if not kept.restore(by_value):
                raise UnsupportedModelError(
                    f"a forward pass in eval mode changed parameter {name} of {type(self._model).__name__}, which no earlier pass "
                    "did, so later rows would depend on this batch. Change parameters only in train mode: if self.training: …"
                )
        self._passes += 1
        if self._passes == _WATCHED:
            for kept in self._parameters.values():
                kept.release()

    def _restore_parts(self) -> None:
        other = []
        for parts, before in self._parts:
            if not _same_items(parts, before):
                other += [
                    name for name, part in parts.items() if part is not before.get(name) and _holds_parameters(part)
                ]
                _refill(parts, before)
        if other and self._parameters:
            raise UnsupportedModelError(
                f"a forward pass in eval mode made or replaced {other[0]!r} of {type(self._model).__name__}, so its parameters are not those of the "
                "checkpoint under these names. If it is made in the first pass, run one batch first: model(batch). Else choose among "
                "modules without assigning them to self."
            )

    def _all_tensors(self) -> Iterator[Tensor]:
        yield from (buffer for _, _, buffer in self._buffers if buffer is not None)
        for _, _, value, contents in self._attributes:
            items = contents.values() if isinstance(contents, dict) else contents if contents is not None else [value]
            for item in map(_as_tensor, items):
                if isinstance(item, Tensor) and not isinstance(item, nn.Parameter):
                    yield item


def _holds_parameters(part: Any) -> bool:
    return isinstance(part, nn.Parameter) or (isinstance(part, nn.Module) and any(True for _ in part.parameters()))


def _as_tensor(item: Any) -> Any:
    """A tensor in the memory of an array; anything else as it is. Files that are mapped are data, and not copied."""
    if isinstance(item, np.ndarray) and item.flags.writeable and not isinstance(item, np.memmap):
        with suppress(TypeError, ValueError):  # of objects and texts, another byte order, a negative stride
            return torch.from_numpy(item)
    return item


class _Kept:
    """A tensor, its memory and its values, to be put back if it was changed in place or given other memory (``.data =``)."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._memory = tensor.data
        self._address = address(self._memory)
        self._values: Tensor | None = self._memory.clone()
        self._version = _version(tensor)
        self._changes = False

    def restore(self, by_value: bool) -> bool:
        """Put back the values, if they have changed; return whether they were still known."""
        moved = address(self._tensor) != self._address
        seen = self._changes or moved or _version(self._tensor) != self._version
        by_value = by_value and self._values is not None and not self._tensor.is_inference()
        if not seen and not (by_value and not _equal(self._memory, self._values)):  # type: ignore[arg-type]
            return True
        if self._values is None:
            return False
        self._changes = True
        if moved:
            self._tensor.data = self._memory
        with torch.no_grad():
            self._memory.copy_(self._values)
        self._version = _version(self._tensor)
        return True

    def release(self) -> None:
        """Forget the values of a tensor that has not changed so far."""
        if not self._changes:
            self._values = None


def address(tensor: Tensor) -> int:
    """Where a tensor's memory begins; 0 if it has no memory of its own."""
    try:
        return tensor.data_ptr()
    except RuntimeError:  # sparse and nested tensors
        return 0


def _equal(one: Tensor, other: Tensor) -> bool:
    try:
        return torch.equal(one, other)
    except RuntimeError:  # sparse and nested tensors cannot be compared
        return True


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _same_items(container: Any, contents: Any) -> bool:
    """Whether a container holds the very same objects."""
    if len(container) != len(contents):
        return False
    if isinstance(container, dict):
        return container.keys() == contents.keys() and all(map(is_, map(container.get, contents), contents.values()))
    if isinstance(container, set):
        return bool(container == contents)
    return all(map(is_, container, contents))


def function_caches(model: nn.Module) -> list[Any]:
    """The methods of modules that are under ``functools.lru_cache``."""
    classes = {base for module in model.modules() for base in type(module).__mro__}
    return [value for cls in classes for value in vars(cls).values() if isinstance(value, functools._lru_cache_wrapper)]


def state_attributes(model: nn.Module) -> Iterator[StateAttribute]:
    """The attributes of all modules, and of objects in them, other than parameters, buffers and modules, and than what belongs to
    quantized weights: bitsandbytes fills scales that are cleared or put back with wrong ones."""
    seen: set[int] = set()
    weights = quantized(model)
    for name, module in model.named_modules():
        if name not in weights:
            yield from _attributes(name, module, seen)


def _attributes(owner: str, holder: Any, seen: set[int]) -> Iterator[StateAttribute]:
    for name, value in list(vars(holder).items()):
        if isinstance(holder, nn.Module) and (name in _INTERNAL or isinstance(value, L.LightningDataModule)):
            continue
        if is_object(value):
            if id(value) not in seen:
                seen.add(id(value))
                yield from _attributes(f"{owner}.{name}" if owner else name, value, seen)
        else:
            yield StateAttribute(owner, (type(holder), name), vars(holder))


def is_object(value: Any) -> bool:
    return (
        not isinstance(value, (nn.Module, Tensor, np.ndarray, type, dict, list, set, tuple))
        and not callable(value)
        and isinstance(getattr(value, "__dict__", None), dict)
    )


def generators(model: nn.Module) -> list[Any]:
    """The generators of random numbers that modules hold."""
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    return [value for module in model.modules() for value in vars(module).values() if isinstance(value, kinds)]


def contents_of(value: Any) -> Any:
    """A shallow copy of a container that can change in place; None for anything else."""
    return copy.copy(value) if isinstance(value, (dict, list, set, deque)) else None


def _refill(container: Any, contents: Any) -> None:
    """Put the contents back into a container, in place."""
    container.clear()
    container.update(contents) if isinstance(container, (dict, set)) else container.extend(contents)
