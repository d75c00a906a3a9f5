"""Flatten nested batches, arguments and outputs of modules: tuples, lists and dicts, and also dataclasses and other mappings,
such as a ``BatchEncoding``, which torch's own pytrees do not support unless they are registered."""

import copy
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

Rebuild = Callable[[Sequence[Any]], Any]


def flatten(tree: Any) -> tuple[list[Any], Rebuild]:
    """Return the leaves of `tree`, and a function that rebuilds it from other leaves."""
    nodes, structure = tree_flatten(tree)
    leaves: list[Any] = []
    parts: list[tuple[int, Rebuild]] = []
    for node in nodes:
        inner, rebuild = _open(node)
        leaves += inner
        parts.append((len(inner), rebuild))

    def rebuild_all(values: Sequence[Any]) -> Any:
        rest, rebuilt = list(values), []
        for length, rebuild in parts:
            rebuilt.append(rebuild(rest[:length]))
            rest = rest[length:]
        return tree_unflatten(rebuilt, structure)

    return leaves, rebuild_all


def leaves_of(tree: Any) -> list[Any]:
    """The leaves of `tree`, as `flatten` returns them, in a fraction of the time for tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        return [tree]
    kind = type(tree)
    if kind is dict:
        tree = tree.values()
    elif kind is not tuple and kind is not list:
        return flatten(tree)[0]
    found: list[Any] = []
    for node in tree:
        if isinstance(node, Tensor):
            found.append(node)
        else:
            found += leaves_of(node)
    return found


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Replace every leaf of `tree` by ``function(leaf)``."""
    leaves, rebuild = flatten(tree)
    return rebuild([function(leaf) for leaf in leaves])


def _only(values: Sequence[Any]) -> Any:
    return values[0]


def _open(node: Any) -> tuple[list[Any], Rebuild]:
    if isinstance(node, tuple) and hasattr(node, "_fields"):  # a subclass of a named tuple, such as a packed sequence
        leaves, rebuild = flatten(list(node))
        named: Any = node
        return leaves, lambda values: named._replace(**dict(zip(named._fields, rebuild(values), strict=True)))
    if isinstance(node, Mapping):
        return _open_mapping(node)
    if not is_dataclass(node) or isinstance(node, type):
        return [node], _only
    names = [field.name for field in fields(node) if hasattr(node, field.name)]
    leaves, rebuild = flatten([getattr(node, name) for name in names])

    def rebuild_instance(values: Sequence[Any]) -> Any:
        rebuilt = copy.copy(node)
        for name, value in zip(names, rebuild(values), strict=True):
            object.__setattr__(rebuilt, name, value)  # also where the dataclass is frozen
        return rebuilt

    return leaves, rebuild_instance


def _open_mapping(node: Mapping[Any, Any]) -> tuple[list[Any], Rebuild]:
    names = list(node)
    leaves, rebuild = flatten([node[name] for name in names])

    def rebuild_mapping(values: Sequence[Any]) -> Any:
        entries = zip(names, rebuild(values), strict=True)
        if not isinstance(node, MutableMapping):
            return dict(entries)
        rebuilt = copy.copy(node)
        for name, value in entries:
            rebuilt[name] = value
        return rebuilt

    return leaves, rebuild_mapping


def deep_leaves(tree: Any) -> list[Any]:
    """The leaves of `tree`; objects that `flatten` treats as leaves, such as graphs, are replaced by the leaves of their
    attributes."""
    found: list[Any] = []
    _collect(tree, found, set())
    return found


def _collect(value: Any, found: list[Any], seen: set[int]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
        return
    kind = type(value)
    if kind is dict or kind is tuple or kind is list:  # what follows would do the same, more slowly
        for leaf in value.values() if kind is dict else value:
            _collect(leaf, found, seen)
        return
    leaves, _ = flatten(value)
    if not (len(leaves) == 1 and leaves[0] is value):
        for leaf in leaves:
            _collect(leaf, found, seen)
    elif isinstance(value, (Tensor, nn.Module, type)) or not isinstance(getattr(value, "__dict__", None), dict):
        found.append(value)
    elif id(value) not in seen:
        seen.add(id(value))
        _collect(dict(vars(value)), found, seen)


def snapshot(value: Any, *, clone: bool = False) -> Any:
    """Copy `value` with its tensors detached, so that later changes of containers and objects (a key-value cache that grows)
    do not affect the copy; with `clone`, nor do in-place changes of tensors and arrays. Modules are not copied."""
    return _snapshot(value, clone, {})


def _snapshot(value: Any, clone: bool, seen: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone() if clone else value.detach()
    if isinstance(value, np.ndarray):
        return value.copy() if clone else value
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, type, nn.Module)) or callable(value):
        return value
    if id(value) in seen:
        return seen[id(value)]
    leaves, rebuild = flatten(value)
    if not (len(leaves) == 1 and leaves[0] is value):
        return rebuild([_snapshot(leaf, clone, seen) for leaf in leaves])
    if not isinstance(getattr(value, "__dict__", None), dict):
        return value
    copied = seen[id(value)] = copy.copy(value)
    for name, attribute in vars(value).items():
        vars(copied)[name] = _snapshot(attribute, clone, seen)
    return copied
