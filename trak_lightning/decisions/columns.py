"""Columns of samples, by the names that a report shows: ``source``, ``numeric[0]``, ``x[3]``; and conditions on them:
``age>60 and sex=female``."""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trak_lightning.errors import DataError, SettingsError, docs_page
from trak_lightning.scoring.base import Array

if TYPE_CHECKING:
    from torch import Tensor

    from trak_lightning.data.dataset import AttributionData
    from trak_lightning.tasks.base import Task

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}

WRITTEN = "a column, one of = != < <= > >=, and a value, in quotes: 'source=web', 'numeric[0]<=1.5'; and joins several: 'age>60 and sex=female'"
"""What can be written as a condition."""

OTHER_COLUMNS = (
    ". feature_names of the dataset, or where(…, feature_names=[…]), names the entries of a vector. Other columns are those of a mapping that render= returns for a sample, where(…, render=lambda sample: {'age': …}); or give "
    "remove() a mask or positions of a table of your own in the same order, such as what_if(name).remove(frame.age > 60), without where()"
)
"""The end of the message that a column is missing, for users of the Python interface."""

GIVES_WORDS = "a mapping that render= returns for a sample, where(…, render=lambda sample: {{'{column}': …}}), may have words for them"
"""What gives words to a column of numbers, for users of the Python interface."""

NAMES_CLASSES = "they are classes, which where(…, class_names=[…]) or classes of the dataset names"
"""What names the classes that a column holds, for users of the Python interface."""

_COMPARISON = r"([^<>=!]+?)\s*(<=|>=|!=|==|=|<|>)\s*(.*)"
_AND = re.compile(r"\s+and\s+(?=(?:(?!\sand\s)[^<>=!])+[<>=!])", re.IGNORECASE)
"""What joins two conditions: a name and an operator follow, so that ``city=Trinidad and Tobago`` is one."""

_OTHER_JOINTS = re.compile(r"(&&?|\|\|?|,|\bor\b)[^<>=!]*[<>=!]", re.IGNORECASE)
"""What looks like another way to join conditions."""

MOST_LISTED = 10


class Condition(NamedTuple):
    """A comparison of a column with a value: of numbers, if both are, otherwise of text."""

    column: str
    operator: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Read one comparison of what `WRITTEN` describes.

        Raises:
            SettingsError: it is something else.
        """
        found = re.fullmatch(_COMPARISON, text.strip(), re.DOTALL)
        if found is None:
            raise SettingsError(f"a condition must be {WRITTEN}, got {text!r}")
        column, comparison, value = found.groups()
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" and value[0] not in value[1:-1]
        if not quoted and (joint := _OTHER_JOINTS.search(value)):
            raise SettingsError(
                f"condition {text!r}: {joint[1]!r} joins no conditions; join them with and, as in 'age>60 and sex=female'; there is no or. "
                f'If it is part of a value, put the value in quotes: {column}{comparison}"…"'
            )
        return cls(column, "=" if comparison == "==" else comparison, value[1:-1] if quoted else value)

    @classmethod
    def parse_all(cls, text: str) -> "list[Condition]":
        """Read several comparisons, joined by ``and``."""
        return [cls.parse(each) for each in _AND.split(text)]

    def __str__(self) -> str:
        value = repr(self.value) if _number(self.value) is None else self.value
        return f"{self.column} {self.operator} {value}"

    def mask(self, values: Array, remedy: str = "") -> Array:
        """Whether each of the values (n,), which are text, fulfills it.

        Raises:
            DataError: none does, which the `remedy` is for, or text would have to be smaller or larger than something.
        """
        compare, wanted, texts = OPERATORS[self.operator], _number(self.value), values.tolist()
        numbers = [None if wanted is None else _number(text) for text in texts]
        if self.operator not in ("=", "!=") and None in numbers:
            what = f"{self.value!r} is none"
            if wanted is not None:
                what = f"{self.column} holds {texts[numbers.index(None)]!r}"
            raise DataError(f"{self}: {self.operator} compares numbers, and {what}; write = or !=")
        pairs = [
            (text, self.value) if number is None else (number, wanted)
            for text, number in zip(texts, numbers, strict=True)
        ]
        mask: Array = np.array([bool(compare(*pair)) for pair in pairs])
        if not mask.any():
            raise DataError(
                f"no training sample has {self}; the values of {self.column} are {_listed(values, numbers)}{remedy}"
            )
        return mask

    def asks_for_words(self, values: Array) -> bool:
        """Whether the values (n,) are numbers, and a word among them is asked for, so that there is none."""
        is_word = self.operator == "=" and _number(self.value) is None
        return is_word and None not in map(_number, values.tolist())


def all_hold(
    conditions: Sequence[Condition],
    columns: Sequence[Array],
    remedy: Callable[[Condition, Array], str] = lambda condition, values: "",
) -> Array:
    """Whether each sample, given its values in the column of every condition, (n,) each, fulfills all of them, (n,). `remedy` is for a
    condition that no sample fulfills.

    Raises:
        DataError: no sample does; says how many fulfill each.
    """
    pairs = zip(conditions, columns, strict=True)
    masks = [condition.mask(values, remedy(condition, values)) for condition, values in pairs]
    both: Array = np.logical_and.reduce(masks)
    if not both.any():
        counts = ", ".join(f"{mask.sum()} have {condition}" for condition, mask in zip(conditions, masks, strict=True))
        raise DataError(f"no training sample fulfills all conditions: {counts}, and none all of these")
    return both


@dataclass(frozen=True)
class Columns:
    """The columns of the n samples of a dataset.

    Attributes:
        rows: the samples.
        render: returns what is shown of the sample at a position, whose entries are columns too if it is a mapping; None if there is nothing else.
        feature_names: names of the entries of vectors.
        answers: other columns: of each name, the values of all samples as text (n,).
        number_of: finds the number that a prediction is compared with, by position, which tables show as the label; the column ``label`` is
            that, whatever `render` returns under this name. None for a task that predicts no numbers.
        classes: reads the class of every sample, integers (n,), or None for a task without classes. The column ``label`` is that, if samples have
            none of this name.
        class_names: of the classes 0, 1, …, which may be written for these numbers in a column that holds classes.
        name: of the dataset, in messages; by default that of its type.
        remedy: the end of the message that a column is missing.
        gives_words: what gives words to a column of numbers, with ``{column}`` for its name; empty if nothing does.
        names_classes: what names the classes that a column holds; empty if nothing does.
    """

    rows: Any
    render: Callable[[int], Any] | None = None
    feature_names: Sequence[str] = ()
    answers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    number_of: Callable[[int], float] | None = None
    classes: Callable[[], Array | None] = lambda: None
    class_names: Sequence[str] = ()
    name: str = ""
    remedy: str = ""
    gives_words: str = ""
    names_classes: str = ""

    def values(self, column: str) -> Array:
        """Return what every sample has in a column, as text (n,); see `value_of`. Of a column that `render` returns, what it returns.

        Raises:
            DataError: samples do not have it, or it holds more than one value per sample.
        """
        rows, render = self.rows, self.render
        if column == "label" and self.number_of is not None:
            return np.array([f"{self.number_of(i):.6g}" for i in range(len(rows))])
        first = None if render is None else render(0)
        if render is not None and column in rendered_columns(first):
            return np.array([value_of(render(i), column) for i in range(len(rows))])
        if column in self.answers and column not in columns_of(rows[0]):
            return np.array(self.answers[column])
        if column == "label" and column not in columns_of(rows[0]) and (classes := self.classes()) is not None:
            return classes.astype(str)
        require_column(
            rows[0],
            column,
            self.feature_names,
            self.name or f"samples of {type(rows).__name__}",
            rendered=first,
            others=[*self.answers, *(["label"] if self.class_names and not self.answers else [])],
            remedy=self.remedy,
        )
        return np.array([value_of(rows[i], column, self.feature_names) for i in range(len(rows))])

    def where(self, condition: str) -> Array:
        """Return whether each sample fulfills a condition, see `WRITTEN`, (n,).

        Raises:
            SettingsError: it is none.
            DataError: a column is missing, or no sample fulfills it.
        """
        conditions = Condition.parse_all(condition)
        values = [self.values(each.column) for each in conditions]
        numbered = [self._numbered(*each) for each in zip(conditions, values, strict=True)]
        return all_hold(numbered, values, self._remedy_for_numbers)

    def _numbered(self, condition: Condition, values: Array) -> Condition:
        """The condition with the number of a class in place of its name, if the column holds classes, whose values (n,) are these."""
        if condition.value not in self.class_names or condition.value in values or not self._are_classes(values):
            return condition
        return condition._replace(value=str(list(self.class_names).index(condition.value)))

    def _are_classes(self, values: Array) -> bool:
        classes = self.classes()
        return classes is not None and [_number(text) for text in values.tolist()] == classes.tolist()

    def _remedy_for_numbers(self, condition: Condition, values: Array) -> str:
        """What to do about a condition that asks for a word in a column of numbers (n,); empty for other conditions."""
        if not condition.asks_for_words(values):
            return ""
        classes = self._are_classes(values)
        numbers = [str(number) for number in range(len(self.class_names))]
        if classes and [*self.class_names] != numbers:  # which are no names
            more = ", …" * (len(self.class_names) > MOST_LISTED)
            return f", of the classes {', '.join(map(repr, self.class_names[:MOST_LISTED]))}{more}"
        shown = condition.column != "label" or self.number_of is None  # that number is shown, whatever render returns
        words = self.gives_words.format(column=condition.column) if shown else ""
        return "".join(f"; {each}" for each in (self.names_classes if classes else "", words) if each)


def answers_of(data: "AttributionData", task: "Task", names: Sequence[str]) -> dict[str, list[str]] | None:
    """What every sample has of each yes-or-no label that has a name: ``1``, ``0``, or ``None`` if it is not known. None if samples do not have
    several such labels."""
    from trak_lightning.tasks.binary import Multilabel

    labels = of_all(data, task.right_answers) if isinstance(task, Multilabel) else None
    if labels is None:
        return None
    columns = ([str(each) if each >= 0 else "None" for each in column] for column in labels.T.tolist())
    return dict(zip(names, columns, strict=True)) if len(names) == labels.shape[1] else {}


def of_all(data: "AttributionData", labels_of: "Callable[[Any], Tensor | None]") -> Array | None:
    """What a function finds in every batch of a dataset, joined, if it finds anything."""
    from trak_lightning.tasks.base import batch_of

    found = []
    for start in range(0, len(data), data.batch_size):
        batch = range(start, min(start + data.batch_size, len(data)))
        with batch_of(len(batch)):
            labels = labels_of(data.batch(batch))
        if labels is None:
            return None
        found.append(labels.numpy())
    joined: Array = np.concatenate(found)
    return joined


def value_of(sample: Any, column: str, feature_names: Sequence[str] = ()) -> str:
    """Return the text of what a sample has in a column: ``3`` of a tensor that holds one number, ``None`` where a sample has no such
    column.

    Columns are the entries of a mapping and the public attributes of an object such as a graph. Of a pair of inputs and a label, the label
    is ``y``, and the inputs are ``x``, or ``x0``, ``x1``, … if they are a tuple. ``numeric[0]`` is an entry of a vector, which also goes by its
    name in `feature_names`, those of the DataModule.

    Raises:
        DataError: the column holds several values, or no such entry.
    """
    columns = columns_of(sample)
    if column in columns:
        return text_of(columns[column], column)
    if column in feature_names and (vector := _vector(columns, len(feature_names))) is not None:
        return f"{float(vector[list(feature_names).index(column)]):g}"
    name, entry = _entry(column)
    value = columns.get(name)
    if value is None or not entry:
        return text_of(value, column)
    try:
        for place in entry:
            value = value[place]
    except (IndexError, TypeError, KeyError):
        raise DataError(
            f"{name} has no entry {column.removeprefix(name)}: its shape is {tuple(np.shape(columns[name]))}"
        ) from None
    return text_of(value, column)


def require_column(
    sample: Any,
    column: str,
    feature_names: Sequence[str],
    samples: str,
    *,
    rendered: Any = None,
    others: Sequence[str] = (),
    remedy: str = "",
) -> None:
    """Refuse a column that the first sample does not have, nor what `rendered` shows of it; `others` are named with them, and `samples` is what
    these are called.

    Raises:
        DataError: names the columns that there are, and the `remedy`.
    """
    columns = columns_of(sample) | rendered_columns(rendered)
    named = list(feature_names) if _vector(columns, len(feature_names)) is not None else []
    if column not in [*columns, *named] and _entry(column)[0] not in columns:
        known = ", ".join([*named, *map(_described, columns, columns.values()), *others])
        known = known or f"none: a sample is a {type(sample).__name__}"
        raise DataError(f"{samples} have no column {column!r}; their columns are {known}{remedy}")


def rendered_columns(rendered: Any) -> dict[str, Any]:
    """The columns of what ``render`` of a DataModule returned for a sample: entries of a mapping, which may be the first of a pair; none
    of anything else."""
    content = rendered[0] if isinstance(rendered, (tuple, list)) and len(rendered) == 2 else rendered
    return columns_of(rendered) if isinstance(content, Mapping) else {}


def columns_of(sample: Any) -> dict[str, Any]:
    """The columns of a sample; see `value_of`."""
    if isinstance(sample, (tuple, list)) and len(sample) == 2 and math.prod(np.shape(sample[1])) == 1:
        return {**_columns_of_content(sample[0]), "y": sample[1]}
    return _columns_of_content(sample)


def _columns_of_content(content: Any) -> dict[str, Any]:
    if isinstance(content, Mapping):
        return {str(name): value for name, value in content.items()}
    if isinstance(content, (tuple, list)):
        columns: dict[str, Any] = {}
        for place, part in enumerate(content):
            columns |= _columns_of_content(part) if isinstance(part, Mapping) else {f"x{place}": part}
        return columns
    if hasattr(content, "shape") or isinstance(content, (str, int, float)):
        return {"x": content}
    return {name: value for name, value in getattr(content, "__dict__", {}).items() if not name.startswith("_")}


def text_of(value: object, column: str) -> str:
    """Return the text that a value of a column is compared by: of a tensor or an array, that of the number in it.

    Raises:
        DataError: it holds several.
    """
    from torch import Tensor, bfloat16

    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy() if value.dtype is not bfloat16 else value.float().cpu().numpy()
    if isinstance(value, np.ndarray):
        if value.size != 1:
            raise DataError(
                f"column {column!r} holds {value.size} values per sample, of shape {value.shape}; one is needed, such as "
                f"{column}{'[0]' * value.ndim}"
            )
        value = value.reshape(-1)[0]
    return str(value)


def _entry(column: str) -> tuple[str, list[int]]:
    """The name and the places of ``numeric[0]``; no places, if there are none."""
    found = re.fullmatch(r"(.+?)((?:\[\d+\])+)", column)
    return (column, []) if found is None else (found[1], [int(each) for each in re.findall(r"\d+", found[2])])


def _vector(columns: Mapping[str, Any], size: int) -> Any:
    """The first column that is a vector of `size` features; None if there is none."""
    return next((each for each in columns.values() if size and np.shape(each) == (size,)), None)


def _described(name: str, value: Any) -> str:
    shape: tuple[int, ...] = getattr(value, "shape", ())
    return f"{name}[0] … {name}[{shape[0] - 1}]" if len(shape) == 1 and shape[0] > 1 else name


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _listed(values: Array, numbers: Sequence[float | None]) -> str:
    known = np.unique(values).tolist()
    finite = [each for each in numbers if each is not None]
    if len(known) > MOST_LISTED and len(finite) == len(values):
        return (
            f"from {min(finite):g} to {max(finite):g}, in the units of the samples ({docs_page('recipes', 'Tables')})"
        )
    return ", ".join(map(repr, known[:MOST_LISTED])) + ", …" * (len(known) > MOST_LISTED)
