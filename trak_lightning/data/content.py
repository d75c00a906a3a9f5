"""Hash the content of samples, to notice a changed label or image before stored rows are reused."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from numbers import Number
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from xxhash import xxh3_64

from trak_lightning.run.content_hashes import UNKNOWN


def content_hash(sample: Any) -> int:
    """Hash the content of a sample: xxh3_64, the same in every process; `UNKNOWN` where it cannot be read.

    Reads tensors, arrays, numbers, text, Pillow images, and containers, dataclasses and objects of these; of an object, the
    public attributes.
    """
    digest = xxh3_64()
    try:
        _feed(digest, sample, set())
    except _Unreadable:
        return UNKNOWN
    return digest.intdigest() or 1


def extent(sample: Any) -> int:
    """How many numbers and characters a sample holds: where samples differ in it, collating pads, packs or sorts them."""
    return _extent(sample, set())


def _extent(value: Any, parents: set[int]) -> int:
    if isinstance(value, Tensor):
        return value.numel()
    if type(value) is dict and id(value) not in parents:
        inside = parents | {id(value)}
        return sum([_extent(part, inside) for part in value.values()])
    if isinstance(value, np.ndarray):
        return int(value.size)
    if isinstance(value, (str, bytes)):
        return len(value)
    if value is None or isinstance(value, (Number, np.generic, PurePath)) or id(value) in parents:
        return 1
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (Number, str)):
        return len(value)
    if _is_image(value):
        return math.prod(value.size)
    try:
        return sum(_extent(part, parents | {id(value)}) for _, part in _parts(value))
    except _Unreadable:
        return 1


_NUMPY = {torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool}


class _Unreadable(Exception):
    """A value whose content cannot be read."""


def _feed(digest: xxh3_64, value: Any, parents: set[int]) -> None:
    kind = type(value)
    if isinstance(value, Tensor):
        _feed_tensor(digest, value)
    elif (kind is tuple or kind is dict) and id(value) not in parents:  # as below, without asking what else it may be
        inside = parents | {id(value)}
        for name, part in value.items() if kind is dict else enumerate(value):
            digest.update(f"{kind.__name__}.{name}\n".encode())
            _feed(digest, part, inside)
        digest.update(b"end\n")
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        _feed_array(digest, value)
    elif value is None or isinstance(value, (str, bytes, Number, np.generic, np.dtype, torch.dtype, PurePath)):
        digest.update(f"{type(value).__name__}:{value!r}\n".encode())
    elif id(value) in parents:
        raise _Unreadable
    elif type(value) is list and all(
        type(part) is int for part in value
    ):  # token ids: what follows would feed, in one piece
        digest.update("".join(f"list.{place}\nint:{part!r}\n" for place, part in enumerate(value)).encode() + b"end\n")
    else:
        for name, part in _parts(value):
            digest.update(f"{type(value).__name__}.{name}\n".encode())
            _feed(digest, part, parents | {id(value)})
        digest.update(b"end\n")


def _feed_tensor(digest: xxh3_64, value: Tensor) -> None:
    if (
        value.layout == torch.strided
        and value.is_cpu
        and value.dtype in _NUMPY
        and not value.is_nested
        and value.is_contiguous()
        and not (value.is_conj() or value.is_neg())
    ):
        digest.update(_header(value.dtype, value.shape))
        digest.update(value.detach().numpy().data)  # the same bytes as those below, in a third of the time
        return
    if value.is_nested or value.is_quantized:
        for part in value.unbind() if value.is_nested else [value.dequantize()]:
            _feed_tensor(digest, part)
        return
    if value.layout != torch.strided:
        value = value.to_dense()
    digest.update(_header(value.dtype, value.shape))
    digest.update(raw_bytes(value))


@lru_cache(1024)
def _header(dtype: torch.dtype, shape: torch.Size) -> bytes:
    return f"{dtype} {tuple(shape)}\n".encode()


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a strided tensor, row by row."""
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _feed_array(digest: xxh3_64, value: np.ndarray) -> None:
    digest.update(f"{value.dtype.str} {value.shape}\n".encode())
    digest.update(value.tobytes())


def _is_image(value: Any) -> bool:
    """Whether it is an image of Pillow."""
    return hasattr(value, "tobytes") and hasattr(value, "mode") and hasattr(value, "size")


def _parts(value: Any) -> list[tuple[Any, Any]]:
    """The entries of a container, or the attributes of an object, by name."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (list, tuple, np.ndarray)):
        return list(enumerate(value))
    if isinstance(value, (set, frozenset)):
        return list(enumerate(sorted(value, key=repr)))
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name, None)) for field in fields(value)]
    if _is_image(value):  # a Pillow image
        return [("mode", value.mode), ("size", value.size), ("pixels", value.tobytes())]
    if callable(getattr(value, "to_dict", None)):  # a graph of PyTorch Geometric
        return list(value.to_dict().items())
    public = {name: part for name, part in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    if not public or callable(value):
        raise _Unreadable
    return list(public.items())
