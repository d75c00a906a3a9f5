"""Show any sample of a dataset as pictures, text, turns of a conversation and tables."""

import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from trak_lightning.errors import DataError
from trak_lightning.report.pictures import Picture, mask_picture, picture
from trak_lightning.report.shown import PROMPT, Part, Shown, Table, Text, Turn
from trak_lightning.report.tokens import token_texts
from trak_lightning.report.turns import masked_turns, turns_in
from trak_lightning.report.values import (
    SHORT,
    are_edges,
    as_array,
    holds_arrays,
    integer,
    is_label,
    is_mask,
    is_picture,
    is_text,
    number_text,
    plain_label,
    same_shape,
    sizes_of,
)
from trak_lightning.run.formatting import format_number
from trak_lightning.scoring.base import evenly
from trak_lightning.scoring.display import TOKEN_IDS
from trak_lightning.tasks.fields import LABEL_NAMES, Key
from trak_lightning.tasks.tokens import IGNORE_INDEX

LONGEST_TEXT = 1200
KEPT = 4096
"""How many samples are kept as they are shown; a page shows fewer, and a list of suspects may have all."""
MOST_FIELDS, MOST_NAMED = 16, 64
"""Entries of a vector that are shown, without names and with them."""
HIDDEN_KEYS = ("attention_mask", "token_type_ids", "position_ids")
LOOKED_AT = 8
"""How many samples are read to know whether all strings of a column are short."""
FEWEST_IDS = 8
"""Fewest integers next to a picture that are taken for a tokenized caption."""


class Samples:
    """The samples of one dataset; each is converted once, however often it is shown, unless `KEPT` others were shown since.

    Args:
        dataset: a map-style dataset.
        render: converts a sample to what is shown of it; None shows the sample itself. Both may be text, an image (tensor or
            array (H, W), (C, H, W) or (H, W, C), or a PIL image), numbers, a conversation (a list of mappings with ``role`` and
            ``content``), a mapping of names to any of these, a sequence of them, or a `Shown`. The label is the second element of
            a pair or the entry ``label`` of a mapping, if it is a number, text, or a vector of 0 and 1, one per class.
        decode: converts token ids to text, see `decoder`. It is given one-dimensional integer tensors and lists of
            integers, but not entries of a mapping that have one value per token of its ``input_ids``.
        class_names: names of labels 0, 1, …
        feature_names: names of the entries of one-dimensional float tensors.
        label_keys: keys under which a mapping may have its label, and positions where a tuple has it.
        label_of: finds the label of a sample, by its position, that shows none itself.
        class_of: finds the class of a sample, by its position, if the task has classes. Where it has a name, this is the label that is shown, and
            not the word that `render` has for it, so that labels and predictions have the same words.
        number_of: finds the number that a prediction of a sample, by its position, is compared with; it is shown as the label, in place of what
            the sample or `render` has, which may be of another unit.
        input_keys: keys of a mapping that hold all that the model is given, if the task names them.
        unread_keys: keys of a mapping that the model is not given.
        ignore_index: the label of pixels that do not count.
        tokenizer: converts single tokens to text.
        grid_of: finds the height and width of the labels of a sample, if they are a picture.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        render: Callable[[Any], Any] | None = None,
        decode: Callable[[list[int]], str] | None = None,
        class_names: Sequence[str] | None = None,
        feature_names: Sequence[str] | None = None,
        label_keys: Sequence[Key] = LABEL_NAMES,
        label_of: Callable[[int], Any] = lambda index: None,
        class_of: Callable[[int], int | None] = lambda index: None,
        number_of: Callable[[int], float] | None = None,
        tokenizer: Any = None,
        input_keys: Collection[str] = (),
        unread_keys: Collection[str] = (),
        ignore_index: int | None = None,
        grid_of: Callable[[int], tuple[int, ...]] = lambda index: (),
    ) -> None:
        self._dataset = dataset
        self._render = render
        self._decode = decode
        self.class_names = class_names
        self._feature_names = feature_names
        self._label_keys = label_keys
        self._label_of = label_of
        self._class_of = class_of
        self._number_of = number_of
        self.tokenizer = tokenizer
        self._input_keys, self._unread_keys = set(input_keys), set(unread_keys)
        self._ignore_index = ignore_index
        self._grid_of = grid_of
        self.show = lru_cache(maxsize=KEPT)(self._show)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        """The sample as the dataset returns it."""
        return self._dataset[index]

    def class_name(self, label: Any) -> str:
        """The name of a class, or its number."""
        names, number = self.class_names, integer(label)
        return (
            str(names[number]) if names is not None and number is not None and 0 <= number < len(names) else str(label)
        )

    def label(self, index: int) -> str | None:
        """The label of a sample as shown, without making pictures."""
        if (known := self._known_label(index)) is not None:
            return known
        sample = self.rendered(index)
        if isinstance(sample, Shown):
            return sample.label
        found = self.split(sample)[1]
        return self._label(self._label_of(index) if found is None else found)

    def token_texts(self, index: int, positions: Iterable[int]) -> list[str]:
        """The text of the tokens at some positions of a sample's ``labels``; the positions, if there is no tokenizer, which are (row, column)
        in labels that are a picture."""
        if self.tokenizer is None:
            grid = self._grid_of(index)
            return [
                str(tuple(map(int, np.unravel_index(each, grid)))) if grid else str(int(each)) for each in positions
            ]
        labels = self._dataset[index]["labels"]
        return token_texts(self.tokenizer, [int(labels[position]) for position in positions])

    def _show(self, index: int) -> Shown:
        sample = self.rendered(index)
        shown = self.shown(sample)
        if (known := self._known_label(index)) is not None:
            return replace(shown, label=known)
        if isinstance(sample, Shown) or shown.label is not None:
            return shown
        return replace(shown, label=self._label(self._label_of(index)))

    def _known_label(self, index: int) -> str | None:
        """The number that a prediction is compared with, or the name of the class; None if neither is known without what `render` returns."""
        if self._number_of is not None:
            return format_number(self._number_of(index))
        names = self.class_names or ()
        number = self._class_of(index) if self._render is not None and names else None
        return self.class_name(number) if number is not None and 0 <= number < len(names) else None

    def rendered(self, index: int) -> Any:
        """What `render` returns for a sample; the sample itself, if there is no `render`.

        Raises:
            DataError: `render` failed.
        """
        sample = self._dataset[index]
        if self._render is None:
            return sample
        try:
            return self._render(sample)
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
        return Shown(tuple(self._parts("", content)), self._label(label))

    def _label(self, label: Any) -> str | None:
        if isinstance(label, tuple):
            return ", ".join(self.class_name(i) for i, is_one in enumerate(label) if is_one) or "no label"
        return None if label is None else self.class_name(label)

    def split(self, sample: Any) -> tuple[Any, int | str | tuple[int, ...] | None]:
        """Split a sample into its content and its label, None if it has none."""
        if isinstance(sample, Mapping):
            tokens = as_array(sample.get("input_ids"))
            found = (key for key in self._label_keys if key in sample and is_label(sample[key]))
            key = next((key for key in found if not same_shape(as_array(sample[key]), tokens)), None)
            if key is None:
                return sample, None
            label = plain_label(sample[key])
            content = {
                name: part for name, part in sample.items() if name != key and not self._repeats(name, part, label)
            }
            return content, label
        if isinstance(sample, (tuple, list)):
            own = [
                place for place in self._label_keys if isinstance(place, int) and -len(sample) <= place < len(sample)
            ]
            place = own[0] % len(sample) if own else 1
            if (own or len(sample) == 2) and as_array(sample[place]) is not None and is_label(sample[place]):
                others = [None if each == place else part for each, part in enumerate(sample)]
                return sample[1 - place] if len(sample) == 2 else tuple(others), plain_label(sample[place])
        return sample, None

    def _repeats(self, name: Any, value: Any, label: Any) -> bool:
        """Whether an entry says again which label a sample has: the same number under another key, or the name of the class."""
        if isinstance(value, str):
            return "label" in str(name).lower() and value == self._label(label)
        return name in self._label_keys and is_label(value) and plain_label(value) == label

    def seen(self, content: Any) -> Any:
        """The part of a sample's content that the model is given, as far as that is known."""
        if not isinstance(content, Mapping):
            return content
        named = bool(self._input_keys) and self._input_keys <= content.keys()
        return {key: content[key] for key in (self._input_keys if named else content.keys() - self._unread_keys)}

    @cached_property
    def _prose(self) -> set[str]:
        """The columns with a string that is not `SHORT`, as far as a few samples show: all rows are shown in the same way."""
        found: set[str] = set()
        for index in evenly(len(self), LOOKED_AT):
            with suppress(Exception):  # the user's code, which tells its errors when this very sample is shown
                found |= set(_long_columns(self.rendered(int(index))))
        return found

    def _parts(self, name: str, value: Any, *, graph: bool = False, pictured: bool = False) -> list[Part]:
        """`graph`: `value` is a part of a graph, whose matrices are no pictures; `pictured`: it is next to a picture."""
        if value is None:
            return []
        if isinstance(value, str):
            return [Text(_shortened(value), name)]
        if isinstance(value, Mapping):
            return self._fields(value)
        if name and _are_words(value):
            return [Text(_shortened(" ".join(value)), name)]
        if isinstance(value, (tuple, list)) and value and all(map(_is_turn, value)):
            return [Turn(str(each["role"]), _shortened(_content(each["content"]))) for each in value]
        array = as_array(value)
        if array is None and isinstance(value, (tuple, list)):
            graph = any(map(are_edges, value))
            pictured = not graph and any(map(is_picture, value))
            names = (
                [name, name or "mask"]
                if self._ignore_index is not None and len(value) == 2
                else _names_of_parts(name, value)
            )
            return [
                part
                for own, element in zip(names, value, strict=True)
                for part in self._parts(own, element, graph=graph, pictured=pictured)
            ]
        if not graph and is_picture(value):
            if is_mask(array, labels=name in ("mask", *self._label_keys)):
                return [replace(mask_picture(array, self._ignore_index, self.class_names), name=name or "mask")]
            return [replace(picture(value if array is None else array), name=name or "image")]
        if array is None:
            text = str(value)
            return [Text(sizes_of(value) if text.startswith("<") or holds_arrays(value) else _shortened(text))]
        if array.ndim == 0:
            return [Table(((name or "value", number_text(array)),))]
        if array.ndim == 1:
            caption = pictured and array.dtype.kind in "iu" and len(array) >= FEWEST_IDS
            return _token_ids("", array) if caption and self._decode is None else self._vector(name, array)
        return [Text(f"{name or 'tensor'} of shape {tuple(array.shape)}")]

    def _vector(self, name: str, array: Any, *, decode: bool = True) -> list[Part]:
        if array.dtype.kind in "iu" and self._decode is not None and decode:
            text = self._decode([number for number in array.tolist() if number >= 0])
            turns = turns_in(text)
            return [Turn(role, _shortened(said)) for role, said in turns] or [Text(_shortened(text.strip()))]
        names, shown = self._feature_names, MOST_NAMED
        if names is None or len(names) != len(array):
            names, shown = [f"{name or 'x'}[{i}]" for i in range(len(array))], MOST_FIELDS
        fields = [(str(each), number_text(number)) for each, number in zip(names[:shown], array[:shown], strict=True)]
        if len(array) > shown:
            fields.append(("…", f"{len(array) - shown} more"))
        return [Table(tuple(fields))]

    def _tokenized(self, text: str, tokens: Any) -> bool:
        """Whether `tokens` are those of a text."""
        if self._decode is None or tokens is None or tokens.ndim != 1:
            return False
        ids = _letters(self._decode([number for number in tokens.tolist() if number >= 0]))
        return bool(ids) and _tells(_letters(text), ids)

    def _fields(self, values: Mapping[Any, Any]) -> list[Part]:
        """Everything in a mapping: pictures and text, one table of short strings and scalars, and vectors. Token ids are left out if their text is
        there too, or, where nothing decodes them, any text or picture."""
        fields: list[tuple[str, str]] = []
        others: list[Part] = []
        decoded: list[tuple[int, list[Part]]] = []
        unreadable: list[Part] = []
        tokens = as_array(values.get("input_ids"))
        masked = None
        graph = any(map(are_edges, values.values()))
        pictured = not graph and any(map(is_picture, values.values()))
        for name, value in values.items():
            array = as_array(value)
            per_token = same_shape(array, tokens) and name != "input_ids"
            integers = array is not None and array.ndim == 1 and array.dtype.kind in "iu"
            if name in HIDDEN_KEYS:
                continue
            if per_token and ((array == tokens) | (array == IGNORE_INDEX)).all():
                masked = array
                continue
            if array is not None and array.ndim == 0:
                fields.append((str(name), number_text(array)))
            elif isinstance(value, str) and len(values) > 2 and self._is_field(str(name), value, tokens):
                fields.append((str(name), value))
            elif (
                integers
                and self._decode is None
                and (tokens is not None or (_are_ids(array) and not self._prose.isdisjoint(values)))
            ):
                unreadable += self._vector(str(name), array) if per_token else _token_ids(str(name), array)
            elif per_token and array.ndim == 1:
                others += self._vector(str(name), array, decode=False)
            elif integers and self._decode is not None:
                decoded.append((len(others), self._vector(str(name), array)))
            else:
                others += self._parts(str(name), value, graph=graph, pictured=pictured)
        said = [_letters(text) for text in (*(Shown((part,)).words for part in others), *(text for _, text in fields))]
        for place, parts in reversed(decoded):
            if masked is not None and isinstance(parts[0], Text):
                parts = self._prompt_and_answer(tokens, masked) or parts
            ids = _letters(Shown(tuple(parts)).words)
            if not ids or not any(_tells(text, ids) for text in (*said, "".join(said))):
                others[place:place] = parts
        if tokens is not None:  # a text, and not a row of a table, whose columns keep their order
            fields.sort(key=lambda field: not isinstance(values.get(field[0]), str))
        strings = sum(isinstance(values.get(name), str) for name, _ in fields)
        content = _named([part for part in others if not isinstance(part, Table)], strings)
        named = [Table(tuple(fields[:MOST_FIELDS]))] if fields else []
        vectors = [part for part in others if isinstance(part, Table)]
        readable = any(isinstance(part, (Picture, Turn)) for part in content) or any(map(is_text, values.values()))
        return [*content, *named, *vectors, *([] if readable else unreadable)]

    def _prompt_and_answer(self, tokens: Any, labels: Any) -> list[Part]:
        assert self._decode is not None
        turns = masked_turns(tokens, labels, self._decode) if tokens.ndim == 1 else []
        return [Turn(role, _end_of(said) if role == PROMPT else _shortened(said)) for role, said in turns]

    def _is_field(self, name: str, text: str, tokens: Any) -> bool:
        return name not in self._prose and not self._tokenized(text, tokens)


def _names_of_parts(name: str, parts: Sequence[Any]) -> list[str]:
    """Names of the parts of a tuple: x0, x1, … by position for numbers and vectors, as conditions on columns name them, ``name[0]``, … of a
    column; otherwise that of the tuple."""
    return [
        (f"{name}[{place}]" if name else f"x{place}")
        if (array := as_array(part)) is not None and array.ndim < 2
        else name
        for place, part in enumerate(parts)
    ]


def _long_columns(value: Any) -> Iterator[str]:
    """The keys of strings that are not `SHORT`, in a mapping and in those inside it."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if isinstance(each, str) and len(each) > SHORT:
                yield str(key)
            else:
                yield from _long_columns(each)
    elif isinstance(value, tuple):
        for each in value:
            yield from _long_columns(each)


def _are_ids(array: Any) -> bool:
    """Whether a vector of integers next to a text may be its token ids, whatever its name: no list of a few, nor of 0 and 1."""
    return len(array) >= FEWEST_IDS and int(array.max()) > 1


def _token_ids(name: str, array: Any) -> list[Part]:
    """Token ids that nothing decodes, without the padding behind them."""
    others = np.flatnonzero(array != array[-1:])
    end = int(others[-1]) + 1 if len(others) else 0
    kept = array[:end] if len(array) - end > 1 else array
    shown = " ".join(map(str, kept[:MOST_FIELDS])) + " …" * (len(kept) > MOST_FIELDS)
    return [Table(((TOKEN_IDS if name in ("", "input_ids") else f"{TOKEN_IDS} of {name}", shown),))]


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " …"


def _end_of(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else "… " + text[-LONGEST_TEXT:]


def _letters(text: str) -> str:
    """What tokenizers keep of a text: letters and digits, without case and accents."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", text).casefold()))


def _tells(text: str, ids: str) -> bool:
    """Whether a text is what token ids say, which may be cut off, or lack words that the tokenizer does not know."""
    left = iter(text)
    return text.startswith(ids) or (3 * len(ids) > len(text) and all(letter in left for letter in ids))


def _named(parts: Sequence[Part], others: int) -> list[Part]:
    """Parts whose texts keep their names only if there is another one, among these or the `others`."""
    several = others + sum(isinstance(part, Text) and bool(part.name) for part in parts) > 1
    return [replace(part, name=part.name * several) if isinstance(part, Text) else part for part in parts]


def _are_words(value: Any) -> bool:
    """Whether `value` is a text that is cut into words."""
    return (
        isinstance(value, (tuple, list))
        and len(value) > 1
        and all(isinstance(each, str) and len(each.split()) == 1 for each in value)
    )


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and {"role", "content"} <= set(value)


def _content(content: Any) -> str:
    """The text of a turn, which may be a list of parts."""
    if isinstance(content, (tuple, list)):
        return "\n".join(
            str(part.get("text", f"[{part.get('type')}]")) for part in content if isinstance(part, Mapping)
        )
    return "" if content is None else str(content)
