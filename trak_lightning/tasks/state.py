"""Settings as JSON: what the run directory records of a task's options, equal in every process that makes the same task.

Nothing here rests on an address in memory. A function is known by its import path, and by what was bound to it: the
arguments of a `functools.partial`, the variables of a closure. That its code has changed is no matter of settings; stored
rows that the changed code does not reproduce show it.
"""

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from inspect import unwrap
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from trak_lightning.data.content import raw_bytes
from trak_lightning.errors import SettingsError

JSON: TypeAlias = Any
"""None, bool, int, float, str, and lists and dicts of these."""

_LISTED = 4096
"""Elements up to which an array is recorded as a list; of a larger one, its hash is."""


def to_json(value: Any, name: str) -> JSON:
    """`value`, the setting called `name`, as JSON. A tensor, an array and a tuple become lists, as if the user had written one.

    Raises:
        SettingsError: the value is of a type that cannot be recorded.
    """
    return _Recorder(name, strict=True).record(value)


class _Recorder:
    """Records values. Where not `strict`, objects of unknown types are recorded by their class alone."""

    def __init__(self, name: str, *, strict: bool, within: Sequence[Any] = ()) -> None:
        self._name = name
        self._strict = strict
        self._open = list(within)

    def record(self, value: Any) -> JSON:
        if any(value is outer for outer in self._open):  # a function that calls itself, a list that holds itself
            return _path(value) if callable(value) else f"<{type(value).__name__}>"
        self._open.append(value)
        try:
            return self._record(value)
        finally:
            self._open.pop()

    def _record(self, value: Any) -> JSON:
        if isinstance(value, Enum):
            return self.record(value.value)
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)  # nan is not equal to itself
        if isinstance(value, np.generic):
            return self.record(value.item())
        if isinstance(value, (Tensor, np.ndarray)):
            return self._array(value)
        if isinstance(value, Mapping):
            return {str(key): self.record(item) for key, item in value.items()}
        if isinstance(value, (list, tuple, range)):
            return [self.record(item) for item in value]
        if isinstance(value, (set, frozenset)):
            return sorted((self.record(item) for item in value), key=repr)
        if isinstance(value, (PurePath, torch.dtype, torch.device)):
            return str(value)
        if isinstance(value, nn.Module):
            return _module(value)
        if is_dataclass(value) and not isinstance(value, type):
            return {"class": _path(type(value))} | {
                field.name: self.record(getattr(value, field.name)) for field in fields(value)
            }
        if callable(value):
            return _Recorder(self._name, strict=False, within=self._open)._function(value)
        if not self._strict:
            return {"class": _path(type(value))}
        raise SettingsError(
            f"{self._name} is a {type(value).__name__}, which cannot be recorded in the run directory, where settings are "
            "compared before stored rows are used again. Use numbers, strings, lists, dicts, tensors, modules or functions; "
            f"give the attribute a name that begins with '_' if outputs do not depend on it; or override `state`."
        )

    def _array(self, value: Any) -> JSON:
        tensor = torch.as_tensor(value).detach().cpu()
        if tensor.numel() <= _LISTED and not tensor.is_complex():
            return self.record(tensor.tolist())
        return {"shape": list(tensor.shape), "dtype": str(tensor.dtype), "sha256": _hash({"": tensor})}

    def _function(self, function: Any) -> JSON:
        if isinstance(function, functools.partial):
            bound = {"partial": self.record(function.func)}
            return bound | _given(args=self.record(list(function.args)), keywords=self.record(function.keywords))
        if isinstance(function, MethodType) and not isinstance(function.__self__, type):
            return {"function": _path(function), "of": self._bound(function.__self__)}
        if isinstance(function, FunctionType):
            return self._plain(function)
        if isinstance(function, (type, BuiltinFunctionType, MethodType)) or hasattr(function, "__qualname__"):
            return _path(function)
        return self._bound(function)

    def _plain(self, function: FunctionType) -> JSON:
        """A module-level function is its import path; one made by another function, also what it was made from."""
        path = _path(unwrap(function))
        if "<" not in function.__qualname__ and function.__closure__ is None:
            return path
        closure = {
            name: self.record(cell.cell_contents)
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
            if _is_filled(cell)
        }
        defaults = self.record([*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()])
        bound = _given(closure=closure, defaults=defaults)
        return {"function": path, **bound} if bound else path

    def _bound(self, holder: Any) -> JSON:
        """An object whose method is called, by its class and public attributes."""
        if isinstance(holder, nn.Module):
            return _module(holder)
        found = getattr(holder, "__dict__", {})
        return {"class": _path(type(holder))} | {
            name: self.record(item) for name, item in found.items() if not name.startswith("_")
        }


def _given(**parts: JSON) -> dict[str, JSON]:
    return {name: part for name, part in parts.items() if part}


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (an empty cell raises)
    except ValueError:
        return False
    return True


def _path(value: Any) -> str:
    holder = value if hasattr(value, "__qualname__") else type(value)
    return f"{holder.__module__}.{holder.__qualname__}"


def _module(module: nn.Module) -> JSON:
    """A module by its class and a hash of its tensors; by its class alone if it is being trained, as the attributed model is,
    since its parameters then differ from checkpoint to checkpoint."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        return {"class": _path(type(module))}
    tensors = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    layers = {name: {"class": _path(type(layer))} | _scalars(layer) for name, layer in module.named_modules()}
    digest = hashlib.sha256(json.dumps(layers).encode()).hexdigest()[:16]
    return {"class": _path(type(module)), "layers": digest} | ({"tensors": _hash(tensors)} if tensors else {})


def _scalars(module: nn.Module) -> dict[str, JSON]:
    """Options of a layer, such as ``label_smoothing`` and ``reduction`` of a loss."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and isinstance(value, (bool, int, float, str))
    }


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(raw_bytes(value))
    return digest.hexdigest()[:16]
