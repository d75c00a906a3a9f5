"""What a value in a sample is: numbers, a label, a picture, edges of a graph, text."""

from contextlib import suppress
from typing import Any

import numpy as np

from trak_lightning.report.pictures import is_image
from trak_lightning.run.formatting import format_number

SHORT = 40
"""Longest string of a column that is shown with its name, such as a category."""
MOST_SIZES = 4
"""How much is shown of an object."""
MOST_CLASSES = 64
"""Longest vector of 0 and 1 that is taken for several labels."""


def as_array(value: Any) -> Any:
    """A tensor, array, number or list of integers as an array; None for anything else."""
    integers = isinstance(value, (list, tuple)) and len(value) > 1 and all(isinstance(each, int) for each in value)
    if integers or isinstance(value, (bool, int, float, np.generic, np.ndarray)):
        array = np.asarray(value)
    elif hasattr(value, "detach") and hasattr(value, "numpy"):
        tensor = value.detach().cpu()
        array = (tensor.float() if tensor.dtype.is_floating_point else tensor).numpy()
    else:
        return None
    return array if array.dtype.kind in "biuf" else None


def integer(value: Any) -> int | None:
    """A single integer as such; None for anything else."""
    array = as_array(value)
    return int(array) if array is not None and array.ndim == 0 and array.dtype.kind in "biu" else None


def number_text(value: Any) -> str:
    return format_number(float(value)) if value.dtype.kind == "f" else str(value)


def plain_label(label: Any) -> Any:
    """An integer, text, or a tuple of 0 and 1; other numbers as text."""
    array = as_array(label)
    if array is None:
        return label
    if array.size > 1:
        return tuple(int(each) for each in array)
    number = array.reshape(-1)[0]
    return int(number) if number.dtype.kind in "biu" or number in (0, 1) else number_text(number)


def is_label(value: Any) -> bool:
    array = as_array(value)
    if array is None:
        return isinstance(value, str)
    return array.size == 1 or (
        array.ndim == 1 and 1 < len(array) <= MOST_CLASSES and bool(np.isin(array, (0, 1)).all())
    )


def same_shape(first: Any, second: Any) -> bool:
    return first is not None and second is not None and first.shape == second.shape


def is_picture(value: Any) -> bool:
    array = as_array(value)
    return is_image(value if array is None else array)


def is_mask(array: Any, *, labels: bool) -> bool:
    """Whether a picture is of one class per pixel: images that are no `labels` are of bytes or floats."""
    return array is not None and array.ndim == 2 and array.dtype.kind in "iu" and (labels or array.dtype != np.uint8)


def are_edges(value: Any) -> bool:
    """Whether `value` is a list of edges, (2, E) or (E, 2) integers."""
    array = as_array(value)
    return array is not None and array.ndim == 2 and 2 in array.shape and array.dtype.kind in "iu"


def holds_arrays(value: Any) -> bool:
    """Whether an object has attributes that are arrays, which it may print in full, as a dataclass does."""
    return any(len(_shape(each)) > 0 for each in getattr(value, "__dict__", {}).values())


def sizes_of(value: Any) -> str:
    """An object that does not print what it holds, or prints all of it, such as a graph: its type, short texts, numbers of nodes and edges, or else shapes.

    >>> class Graph:
    ...     name, num_nodes, num_edges = "benzene", 6, 12
    >>> sizes_of(Graph())
    'Graph: 6 nodes, 12 edges'
    """
    attributes = {name: each for name, each in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    counts = [f"{count} {what}" for what in ("nodes", "edges") if (count := _count(value, what)) is not None]
    shapes = [f"{name} of shape {shape}" for name, each in attributes.items() if len(shape := _shape(each)) > 0]
    texts = [each for each in attributes.values() if isinstance(each, str) and 0 < len(each) <= SHORT]
    return ": ".join(filter(None, (type(value).__name__, ", ".join([*texts, *(counts or shapes)][:MOST_SIZES]))))


def _count(value: Any, what: str) -> int | None:
    """The number of nodes or edges of a graph: its attribute ``num_nodes``, or what ``x`` (nodes, …) and ``edge_index`` (2, E) have."""
    with suppress(Exception):  # a property of the user's class
        found = integer(getattr(value, f"num_{what}", None))
        edges, nodes = (_shape(getattr(value, name, None)) for name in ("edge_index", "x"))
        if found is not None or len(edges) != 2:
            return found
        return edges[1] if what == "edges" else nodes[0] if nodes else None
    return None


def _shape(value: Any) -> tuple[int, ...]:
    """The shape of an array or tensor of more than one number; () of anything else."""
    array = as_array(value)
    return () if array is None or array.size < 2 or isinstance(value, (list, tuple)) else array.shape


def is_text(value: Any) -> bool:
    """Whether `value` is text, or a list of words."""
    return isinstance(value[0] if isinstance(value, (tuple, list)) and value else value, str)
