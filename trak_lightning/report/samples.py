"""Show any sample of a dataset as pictures, text and tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from trak_lightning.errors import DataError
from trak_lightning.report.pictures import Picture, is_image, picture
from trak_lightning.tasks.fields import LABEL_NAMES

LONGEST_TEXT = 600
MOST_FIELDS = 16
HIDDEN_KEYS = ("attention_mask", "token_type_ids", "position_ids")


@dataclass(frozen=True)
class Text:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """Names and values."""

    fields: tuple[tuple[str, str], ...]


Part: TypeAlias = Picture | Text | Table


@dataclass(frozen=True)
class Shown:
    """A sample as shown on a page: its parts in order, and its label."""

    parts: tuple[Part, ...]
    label: str | None = None

    @property
    def words(self) -> str:
        """All its text, for search and screen readers."""
        found = [] if self.label is None else [self.label]
        for part in self.parts:
            if isinstance(part, Text):
                found.append(part.text)
            elif isinstance(part, Table):
                found += [f"{name} {value}" for name, value in part.fields]
        return " ".join(found)


class Samples:
    """The samples of one dataset; each is converted once, however often it is shown.

    Args:
        dataset: a map-style dataset.
        render: converts a sample to what is shown of it; None shows the sample itself. Both may be text, an image (tensor or
            array (H, W), (C, H, W) or (H, W, C), or a PIL image), numbers, a mapping of names to any of these, a sequence of
            them, or a `Shown`. The label is the second element of a pair, if it is an integer, or the entry ``label`` of a
            mapping, if it is an integer or text.
        decode: converts token ids to text; a tokenizer's ``decode``. It is given one-dimensional integer tensors and lists of
            integers, but not entries of a mapping that have one value per token of its ``input_ids``.
        class_names: names of labels 0, 1, …
        feature_names: names of the entries of one-dimensional float tensors.
        label_keys: other keys under which a mapping may have its label.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        render: Callable[[Any], Any] | None = None,
        decode: Callable[[list[int]], str] | None = None,
        class_names: Sequence[str] | None = None,
        feature_names: Sequence[str] | None = None,
        label_keys: Sequence[str] = (),
    ) -> None:
        self._dataset = dataset
        self._render = render
        self._decode = decode
        self._class_names = class_names
        self._feature_names = feature_names
        self._label_keys = (*label_keys, *LABEL_NAMES)
        self.show = lru_cache(maxsize=None)(self._show)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        """The sample as the dataset returns it."""
        return self._dataset[index]

    def class_name(self, label: Any) -> str:
        """The name of a class, or its number."""
        names, number = self._class_names, _integer(label)
        return (
            str(names[number]) if names is not None and number is not None and 0 <= number < len(names) else str(label)
        )

    def _show(self, index: int) -> Shown:
        sample = self._dataset[index]
        if self._render is None:
            return self.shown(sample)
        try:
            return self.shown(self._render(sample))
        except Exception as error:
            raise DataError(
                f"render failed on sample {index} of {type(self._dataset).__name__}: {type(error).__name__}: {error}. It receives "
                "one sample as the dataset returns it, and must return text, an image, or a mapping of names to these."
            ) from error

    def shown(self, value: Any) -> Shown:
        """Convert `value` to what a page shows."""
        if isinstance(value, Shown):
            return value
        content, label = self.split(value)
        return Shown(tuple(self._parts("", content)), None if label is None else self.class_name(label))

    def split(self, sample: Any) -> tuple[Any, int | str | None]:
        """Split a sample into its content and its label, None if it has none."""
        if isinstance(sample, Mapping):
            key = next((key for key in self._label_keys if key in sample and _is_label(sample[key])), None)
            if key is None:
                return sample, None
            return {name: part for name, part in sample.items() if name != key}, _plain(sample[key])
        if isinstance(sample, (tuple, list)) and len(sample) == 2 and _integer(sample[1]) is not None:
            return sample[0], _plain(sample[1])
        return sample, None

    def _parts(self, name: str, value: Any) -> list[Part]:
        if value is None:
            return []
        if isinstance(value, str):
            return [Text(value if len(value) <= LONGEST_TEXT else value[:LONGEST_TEXT] + " …")]
        if isinstance(value, Mapping):
            return self._fields(value)
        array = _array(value)
        if array is None and isinstance(value, (tuple, list)):
            return [part for element in value for part in self._parts(name, element)]
        if is_image(value if array is None else array):
            return [picture(value if array is None else array)]
        if array is None:
            return [Text(f"{type(value).__name__}")]
        if array.ndim == 0:
            return [Table(((name or "value", _number(array)),))]
        if array.ndim == 1:
            return self._vector(name, array)
        return [Text(f"{name or 'tensor'} of shape {tuple(array.shape)}")]

    def _vector(self, name: str, array: Any, *, decode: bool = True) -> list[Part]:
        if array.dtype.kind in "iu" and self._decode is not None and decode:
            return self._parts(name, self._decode([number for number in array.tolist() if number >= 0]))
        names = self._feature_names
        if names is None or len(names) != len(array):
            names = [f"{name or 'x'}[{i}]" for i in range(min(len(array), MOST_FIELDS))]
        fields = [(str(names[i]), _number(array[i])) for i in range(min(len(array), MOST_FIELDS))]
        if len(array) > MOST_FIELDS:
            fields.append(("…", f"{len(array) - MOST_FIELDS} more"))
        return [Table(tuple(fields))]

    def _fields(self, values: Mapping[Any, Any]) -> list[Part]:
        """Everything in a mapping but its scalars; these follow in one table."""
        fields: list[tuple[str, str]] = []
        others: list[Part] = []
        tokens = _array(values.get("input_ids"))
        for name, value in values.items():
            array = _array(value)
            per_token = _same_shape(array, tokens) and name != "input_ids"
            if name in HIDDEN_KEYS or (per_token and np.array_equal(array, tokens)):
                continue
            if array is not None and array.ndim == 0:
                fields.append((str(name), _number(array)))
            elif isinstance(value, str) and len(values) > 2 and len(value) <= 40:
                fields.append((str(name), value))
            elif per_token and array.ndim == 1:
                others += self._vector(str(name), array, decode=False)
            else:
                others += self._parts(str(name), value)
        return [*others, *([Table(tuple(fields[:MOST_FIELDS]))] if fields else [])]


def _array(value: Any) -> Any:
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


def _same_shape(first: Any, second: Any) -> bool:
    return first is not None and second is not None and first.shape == second.shape


def _plain(label: Any) -> Any:
    number = _integer(label)
    return label if number is None else number


def _integer(value: Any) -> int | None:
    array = _array(value)
    return (
        int(array) if array is not None and array.size == 1 and array.ndim == 0 and array.dtype.kind in "biu" else None
    )


def _is_label(value: Any) -> bool:
    return isinstance(value, str) or _integer(value) is not None


def _number(value: Any) -> str:
    return f"{value:.4g}" if value.dtype.kind == "f" else str(value)
