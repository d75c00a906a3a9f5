"""Begin every pass with the state that the checkpoint has, whatever earlier passes have changed."""

import copy
import functools
import random
from collections import deque
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from operator import is_
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from trak_lightning.errors import UnsupportedModelError
from trak_lightning.model.dtensor import any_sharded
from trak_lightning.model.quantized import quantized

_INTERNAL = {*vars(nn.Module()), *vars(L.LightningModule())}
"""Attributes that every module has."""


FOLLOWED = 1_000
"""Of an attribute that holds more containers and objects, such as a dataset in lists, only those nearest to it are followed."""

_APART = (
    "torch.distributed",
    "torch.fx",
    "torch.optim",
    "torch._",
    "logging",
    "threading",
    "multiprocessing",
    "triton",
    "numba",
)
"""Modules of objects that are no state of a model."""


@dataclass(frozen=True)
class StateAttribute:
    """An attribute of a module, of its class, or of an object in one; or an entry of a container in such an attribute."""

    owner: str
    kind: tuple[Any, ...]
    """Class and attribute, and where in the attribute: what all modules of a class keep is cleared together."""
    attributes: Any
    """What maps names to values, or a sequence."""
    name: Any

    @property
    def value(self) -> Any:
        try:
            return self.attributes[self.name]
        except (LookupError, AttributeError):
            return None

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}" if self.owner else str(self.name)


_WATCHED = 8
"""In so many passes tensors are compared by value, which shows changes through ``.data``; later, by version and memory."""


class SteadyState:
    """What modules hold: buffers, attributes of them and of their classes (a step counter, a memory of earlier batches), with all that is
    in them, what is under ``lru_cache``, modules that a forward pass replaces, and parameters that it changes (the momentum encoder of MoCo). A gradient must not depend on how
    many batches came before.

    Memory: a copy of the parameters during the first passes.
    """

    def __init__(self, model: nn.Module, *, parameters: bool = True) -> None:
        self._model = model
        self._function_caches = function_caches(model)
        places = list(state_attributes(model))
        self._attributes = [(place.attributes, place.name, place.value) for place in places]
        held = {id(part): part for place in places for part in reached(place.value)}
        self._held = list(held.values())
        self._containers = [(part, contents) for part in self._held if (contents := contents_of(part)) is not None]
        holders = [vars(module) for module in model.modules()] + [attributes for attributes, *_ in self._attributes]
        self._names = {id(each): (each, set(each)) for each in holders if type(each) is dict}
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
        watched = parameters and not any_sharded(model.parameters())
        self._parameters = {name: _Kept(each) for name, each in model.named_parameters()} if watched else {}
        self._passes = 0

    def restore(self) -> None:
        """Put everything back as it was, in place.

        Raises:
            UnsupportedModelError: a parameter was changed by a later pass and by none of the first ones, or a pass made or replaced some.
        """
        for cache in self._function_caches:
            cache.cache_clear()
        for attributes, name, value in self._attributes:
            if name not in attributes or attributes[name] is not value:
                attributes[name] = value
        for container, contents in self._containers:
            if not _same_items(container, contents):
                _refill(container, contents)
        sharded = any_sharded(self._model.parameters())  # as the first pass may do; it adds attributes of its own
        for attributes, names in self._names.values():
            if len(attributes) != len(names) and not sharded:
                for name in attributes.keys() - names - _INTERNAL:
                    if not callable(attributes[name]):
                        del attributes[name]
        for buffers, name, buffer in self._buffers:
            if buffers.get(name) is not buffer:
                buffers[name] = buffer
        if not sharded:
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
        parts = ([part for _, part in parts_of(each)] for each in self._held)
        for values in ([value for *_, value in self._attributes], *parts):
            for item in map(_as_tensor, values):
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
    """What is under ``functools.lru_cache``: methods of modules, and functions that methods of the user's modules name."""
    classes = {base for module in model.modules() for base in type(module).__mro__}
    values = [value for cls in classes for value in vars(cls).values()]
    methods = [getattr(value, "fget", None) or getattr(value, "__func__", value) for value in values]
    named = [
        method.__globals__.get(name)
        for method in methods
        if isinstance(method, FunctionType) and not method.__module__.startswith("torch.")
        for name in method.__code__.co_names
    ]
    found = [each for each in (*methods, *named) if isinstance(each, functools._lru_cache_wrapper)]
    return list({id(each): each for each in found}.values())


def state_attributes(model: nn.Module) -> Iterator[StateAttribute]:
    """The attributes of all modules and of their classes, and of objects in them, other than parameters, buffers and modules, and than what
    belongs to quantized weights: bitsandbytes fills scales that are cleared or put back with wrong ones."""
    seen: set[int] = set()
    weights = quantized(model)
    for name, module in model.named_modules():
        if name not in weights:
            own = {key: value for key, value in vars(module).items() if key not in _INTERNAL}
            yield from _attributes(name, type(module), vars(module), own, seen)
    for cls in dict.fromkeys(base for module in model.modules() for base in type(module).__mro__):
        if cls.__module__.partition(".")[0] not in ("torch", "lightning", "pytorch_lightning", "builtins"):
            variables = _Attributes(cls, [name for name, value in vars(cls).items() if _is_variable(name, value)])
            yield from _attributes(cls.__qualname__, cls, variables, variables, seen)


def _attributes(
    owner: str, kind: type, attributes: Any, values: MutableMapping[str, Any], seen: set[int]
) -> Iterator[StateAttribute]:
    for name, value in list(values.items()):
        if isinstance(value, (L.LightningDataModule, Dataset, DataLoader)):
            continue
        yield StateAttribute(owner, (kind, name), attributes, name)
        for part in reached(value):
            if is_object(part) and id(part) not in seen:
                seen.add(id(part))
                inner = attributes_of(part)
                for key in list(inner):
                    yield StateAttribute(f"{owner}.{name}" if owner else name, (type(part), key), inner, key)


def _is_variable(name: str, value: Any) -> bool:
    """Whether an entry of a class is a value, rather than a method, a property or a class."""
    return not (name.startswith("__") or hasattr(value, "__get__") or isinstance(value, (type, nn.Module)))


class _Attributes(MutableMapping[str, Any]):
    """The attributes of a class, or of an object without ``__dict__``, of these names."""

    def __init__(self, holder: Any, names: Iterable[str]) -> None:
        self._holder = holder
        self._names = list(names)
        self._base: Any = type if isinstance(holder, type) else object

    def __getitem__(self, name: str) -> Any:
        return getattr(self._holder, name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._base.__setattr__(self._holder, name, value)

    def __delitem__(self, name: str) -> None:
        self._base.__delattr__(self._holder, name)

    def __contains__(self, name: object) -> bool:
        return hasattr(self._holder, str(name))

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def is_object(value: Any) -> bool:
    """Whether a value is an object with attributes, which may be callable; no module, data, class or function."""
    return (
        not isinstance(
            value,
            (nn.Module, Tensor, np.ndarray, dict, list, set, tuple, deque, L.LightningDataModule, Dataset, DataLoader),
        )
        and not isinstance(value, (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, functools.partial))
        and not type(value).__module__.startswith(_APART)
        and (isinstance(getattr(value, "__dict__", None), dict) or bool(_slots(value)))
    )


def attributes_of(value: Any) -> MutableMapping[str, Any]:
    """The attributes of an object."""
    return vars(value) if isinstance(getattr(value, "__dict__", None), dict) else _Attributes(value, _slots(value))


def _slots(value: Any) -> list[str]:
    found = [vars(cls).get("__slots__", ()) for cls in type(value).__mro__]
    return [name for names in found for name in ((names,) if isinstance(names, str) else names) if name[:2] != "__"]


def parts_of(value: Any) -> list[tuple[Any, Any]]:
    """What a container, an object, or a function with bound arguments holds: keys, positions or names, and values."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (list, tuple, set, deque)):
        return list(enumerate(value))
    if isinstance(value, functools.partial):
        return [("args", value.args), ("keywords", value.keywords)]
    if isinstance(value, MethodType):
        return [("__self__", value.__self__)]
    return list(attributes_of(value).items()) if is_object(value) else []


def reached(value: Any) -> list[Any]:
    """The containers and objects that a value leads to, itself first."""
    seen, found = set[int](), list[Any]()
    waiting = deque([value])
    while waiting:
        part = waiting.popleft()
        if id(part) in seen or (not (inner := parts_of(part)) and contents_of(part) is None):
            continue
        if len(found) >= FOLLOWED:
            break
        seen.add(id(part))
        found.append(part)
        waiting.extend(each for _, each in inner if not isinstance(each, (Tensor, str, int, float)))
    return found


def generators(model: nn.Module) -> list[Any]:
    """The generators of random numbers that modules hold, in attributes or in what is in these."""
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    values = (place.value for place in state_attributes(model))
    held = (
        part for value in values for part in (value, *(inner for each in reached(value) for _, inner in parts_of(each)))
    )
    return list({id(each): each for each in held if isinstance(each, kinds)}.values())


def contents_of(value: Any) -> Any:
    """A shallow copy of a container that can change in place; None for anything else."""
    return copy.copy(value) if isinstance(value, (dict, list, set, deque)) else None


def _refill(container: Any, contents: Any) -> None:
    """Put the contents back into a container, in place."""
    container.clear()
    container.update(contents) if isinstance(container, (dict, set)) else container.extend(contents)
