"""Compare a batch with its samples, each collated alone: does every entry hold the samples in their order?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trak_lightning.data.content import content_hash
from trak_lightning.run.content_hashes import changed

Differs = npt.NDArray[np.bool_]

_DEPTH = 8
"""How deep batches are looked into."""


def differences(batch: Any, alone: Sequence[Any], positions: Sequence[int], size: int) -> dict[str, Differs]:
    """Find the entries of a batch that are not those of its samples collated alone, apart from padding: for each, by name, which
    samples differ, (B,).

    What need not be the same is left out: numbers that all samples share, and tensors in which no dimension shows the
    samples. An entry that differs may be right, such as an index into the batch.

    Args:
        batch: the collated batch.
        alone: samples collated alone, None for those that cannot be.
        positions: where these samples are in the batch.
        size: B.
    """
    known = [number for number, part in enumerate(alone) if part is not None]
    places = [positions[number] for number in known]
    failed = [positions[number] for number in range(len(alone)) if alone[number] is None]
    found: dict[str, Differs] = {}
    if failed:
        found["the batch of one"] = _marked([True] * len(failed), failed, size)
    if known:
        _compare("", batch, [alone[number] for number in known], places, size, found, _DEPTH)
    return {name: differs for name, differs in found.items() if differs.any()}


def _compare(
    name: str, whole: Any, parts: list[Any], places: list[int], size: int, found: dict[str, Differs], depth: int
) -> None:
    """Compare an entry of a batch, called `name`, with the same entry of the samples at `places`; add what differs to `found`."""
    nodes = [_opened(node) for node in (whole, *parts)]
    whole, parts = nodes[0], nodes[1:]
    if any(type(part) is not type(whole) for part in parts) or not depth:
        return
    if isinstance(whole, Tensor):
        differs = _differing_samples(whole, parts, places, size)
        if differs is not None:
            found[name or "the batch"] = _marked(differs, places, size)
    elif isinstance(whole, Mapping):
        for key in whole:
            if all(key in part for part in parts):
                inside = f"{name}.{key}" if name else str(key)
                _compare(inside, whole[key], [part[key] for part in parts], places, size, found, depth - 1)
    elif isinstance(whole, (list, tuple)):
        if all(len(part) == len(whole) for part in parts):
            for number, value in enumerate(whole):
                inside = f"{name}[{number}]"
                _compare(inside, value, [part[number] for part in parts], places, size, found, depth - 1)
        elif len(whole) == size and all(len(part) == 1 for part in parts):
            pairs = [(whole[place], part[0]) for place, part in zip(places, parts, strict=True)]
            each = [changed(content_hash(one), content_hash(other)) for one, other in pairs]
            found[name or "the batch"] = _marked(each, places, size)


def _opened(node: Any) -> Any:
    """A node as a tensor, a mapping or a sequence, where it can be read as one."""
    if isinstance(node, np.ndarray) and node.dtype.kind in "biufc":
        return torch.as_tensor(node)
    if isinstance(node, (Tensor, Mapping, list, tuple, str, bytes, type)) or callable(node):
        return dict(node) if isinstance(node, Mapping) else node
    attributes = getattr(node, "__dict__", None)
    return dict(attributes) if isinstance(attributes, dict) else node


def _marked(differs: Sequence[bool], places: Sequence[int], size: int) -> Differs:
    marked = np.zeros(size, bool)
    marked[list(places)] = list(differs)
    return marked


def _differing_samples(whole: Tensor, parts: list[Tensor], places: list[int], size: int) -> list[bool] | None:
    """Which samples differ; None if no dimension shows where they are.

    Several dimensions may show them, and samples may be stacked, joined or woven. The reading in which fewest samples differ
    counts: a batch that holds its samples is equal in the right one, and a wrong one must not accuse it.
    """
    tensors = [whole, *parts]
    if any(tensor.is_nested or tensor.layout != torch.strided or tensor.ndim != whole.ndim for tensor in tensors):
        return None
    found = []
    for dim in range(whole.ndim):
        lengths = [part.shape[dim] for part in parts]
        if whole.shape[dim] == size and set(lengths) == {1}:
            found.append(_differing_slices(whole, parts, places, dim))
        elif len(parts) == size and sum(lengths) == whole.shape[dim]:
            found.append(
                [not _equal_up_to_offset(*pair) for pair in zip(whole.split(lengths, dim), parts, strict=True)]
            )
            if set(lengths) == {lengths[0]}:
                woven = whole.unflatten(dim, (lengths[0], size)).unbind(dim + 1)
                found.append([not _equal_aligned(*pair) for pair in zip(woven, parts, strict=True)])
    return min(found, key=sum) if found else None


def _differing_slices(whole: Tensor, parts: list[Tensor], places: list[int], dim: int) -> list[bool]:
    rest = whole.shape[:dim], whole.shape[dim + 1 :]
    if all((part.shape[:dim], part.shape[dim + 1 :]) == rest for part in parts):
        chosen = (
            whole
            if len(places) == whole.shape[dim]
            else whole.index_select(dim, torch.tensor(places, device=whole.device))
        )
        if torch.equal(chosen, torch.cat(parts, dim)):
            return [False] * len(parts)
    return [not _equal_aligned(whole.narrow(dim, place, 1), part) for place, part in zip(places, parts, strict=True)]


def _equal_aligned(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal where both are, aligned at either end."""
    sizes = list(map(min, one.shape, other.shape))
    if any(torch.equal(first, second) for first, second in zip(_ends(one, sizes), _ends(other, sizes), strict=True)):
        return True
    if not one.is_floating_point() or one.shape != other.shape:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _ends(tensor: Tensor, sizes: list[int]) -> list[Tensor]:
    begin = end = tensor
    for dim, length in enumerate(sizes):
        begin = begin.narrow(dim, 0, length)
        end = end.narrow(dim, end.shape[dim] - length, length)
    return [begin, end] if list(tensor.shape) != sizes else [begin, begin]


def _equal_up_to_offset(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal; integers also if they differ by the same number, as indices into a batch do."""
    if one.dtype.is_floating_point or one.dtype == torch.bool or one.shape != other.shape:
        return _equal_aligned(one, other)
    return not one.numel() or bool((one - other == (one - other).flatten()[0]).all())
