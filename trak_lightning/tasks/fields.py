"""Find the inputs of the model and the labels in a batch, by name or by position.

Names are those of mappings (a ``dict``, a ``BatchEncoding``), dataclasses and named tuples, and attributes of other objects if a
setting names them; positions are those of tuples and lists. ``labels.age`` is the entry ``age`` of the entry ``labels``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor

from trak_lightning.errors import DataError, docs_page
from trak_lightning.tasks.base import current_size
from trak_lightning.tasks.calling import Arguments, Call, MainAndOthers, OneOrSeveral

Key: TypeAlias = str | int
"""A name, or a position."""

Inputs: TypeAlias = Key | list[Key] | dict[str, Key] | None
"""Entries of a batch. One is the model's only argument. Of several, those with names are passed by name and others in order. A
dict maps arguments to entries. ``*`` is the whole batch. None for the default of `split_batch`."""

LABEL_NAMES = ("labels", "label", "label_ids", "targets", "target")
"""Names under which labels are looked for, in this order."""


def split_batch(
    batch: Any,
    inputs: Inputs = None,
    labels: Key | None = None,
    preferred: Sequence[str] = (),
    label_names: Sequence[str] = LABEL_NAMES,
) -> tuple[Call, Any]:
    """Find how to call the model, and the labels.

    By default a pair is (inputs, labels), and in a batch with names the labels are the first of `label_names`. The model is
    called with all other tensors by their names, or with the only other one without its name. If one of them has a
    `preferred` name, it may go without its name, and tensors that the model has no argument for are left out. If the first
    of a pair is a mapping, the same is done with its tensors; if it is a tuple or a list, its entries are the arguments.

    Raises:
        DataError: an entry is not there, or nothing says which it is; names the entries that are.
    """
    if labels is None:
        labels = label_key(batch, label_names)
    found = entry(batch, labels, "labels")
    if inputs is not None:
        return select_entries(batch, inputs), found
    if _is_pair(batch) and labels == 1:
        return _first_of_pair(batch[0], preferred), found
    return _default_inputs(batch, (labels,), preferred), found


def select_entries(batch: Any, inputs: Key | Sequence[Key] | Mapping[str, Key], setting: str = "inputs") -> Arguments:
    """Make arguments of a model from entries of a batch: see `Inputs`.

    Raises:
        DataError: an entry is not there. `setting` is the option that should name another.
    """
    if inputs == "*":
        return Arguments((batch,))
    names = tuple(named_entries(batch) or _attributes(batch))
    if isinstance(inputs, (str, int)):
        return Arguments((entry(batch, inputs, setting),), names=names)
    if isinstance(inputs, Mapping):
        return Arguments(kwargs={name: entry(batch, key, setting) for name, key in inputs.items()}, names=names)
    positions = [key for key in inputs if isinstance(key, int)]
    return Arguments(
        tuple(entry(batch, key, setting) for key in positions),
        {key: entry(batch, key, setting) for key in inputs if isinstance(key, str)},
        names=names,
    )


def all_tensors(batch: Any, *, hint: str) -> Arguments:
    """Make arguments of all tensors of a batch by their names, labels among them.

    Raises:
        DataError: the batch has no names. `hint` says what else can be done.
    """
    named = named_entries(batch)
    if named is None:
        raise DataError(
            f"the batch is {describe(batch)}, where entries with names (a dict) were expected, to call the model with. Give such a batch, "
            f"{hint}."
        )
    return Arguments(kwargs={name: value for name, value in named.items() if isinstance(value, Tensor)})


def entry(holder: Any, key: Key, setting: str, what: str = "the batch") -> Any:
    """Find one entry of a batch, or of `what` else has entries, by name or by position; or by several, with dots between them.

    Raises:
        DataError: it is not there. Names the entries that are, and the option `setting` that should name one of them.
    """
    if isinstance(key, int) and isinstance(holder, (tuple, list)):
        if -len(holder) <= key < len(holder):
            return holder[key]
    elif isinstance(key, str) and key in (named := named_entries(holder) or _attributes(holder)):
        return named[key]
    elif isinstance(key, str) and "." in key:
        first, _, rest = key.partition(".")
        by_position = first.isdecimal() and named_entries(holder) is None
        inner = entry(holder, int(first) if by_position else first, setting, what)
        return entry(inner, rest, setting, f"{first} of {what}")
    remedy = _by_function() if _is_list_of_objects(holder) else f"Name the right one: task: {{name: …, {setting}: …}}"
    raise DataError(
        f"{what} has no {'entry' if isinstance(key, str) else 'position'} {key!r} ({setting}); it is {describe(holder)}. {remedy}."
    )


def _by_function() -> str:
    return (
        "No setting takes apart one object per sample: give a function (model, batch) → loss of each sample, (B,), task: {name: loss, "
        f"function: …}}; or write a Task with an `output` of your own ({docs_page('recipes')})"
    )


def _is_list_of_objects(holder: Any) -> bool:
    """Whether this is a list of samples, such as graphs, that nothing has joined."""
    return isinstance(holder, list) and bool(holder) and all(map(_attributes, holder))


def named_entries(holder: Any) -> Mapping[str, Any] | None:
    """Return the entries of a mapping, a dataclass or a named tuple by their names; None for anything else."""
    if isinstance(holder, Mapping):
        return holder
    if is_dataclass(holder) and not isinstance(holder, type):
        return {entry.name: getattr(holder, entry.name) for entry in fields(holder)}
    if isinstance(holder, tuple) and hasattr(holder, "_fields"):
        return dict(zip(holder._fields, holder, strict=True))
    return None


def _attributes(holder: Any) -> Mapping[str, Any]:
    """The attributes of an object that is no collection, such as a batch of graphs. They are not looked for by themselves: any of
    them may be a cache."""
    return {} if isinstance(holder, (Tensor, tuple, list)) else getattr(holder, "__dict__", {})


def describe(holder: Any) -> str:
    """Say what type `holder` is of, and the names and shapes of its entries, for an error message."""
    named = named_entries(holder)
    name = type(holder).__name__
    if named is not None:
        return f"a {name} with {', '.join(map(_described, named, named.values())) or 'no entries'}"
    if attributes := {key: each for key, each in _attributes(holder).items() if not key.startswith("_")}:
        return f"a {name} with attributes {', '.join(map(_described, attributes, attributes.values()))}"
    if not isinstance(holder, (tuple, list)):
        return f"a {name}"
    if _is_list_of_objects(holder):
        return f"a {name} of length {len(holder)} of {type(holder[0]).__name__} objects"
    shown = [_described(str(place), each) for place, each in enumerate(holder[:8])] if len(holder) < 9 else []
    shapes = any(isinstance(each, Tensor) for each in holder)
    return f"a {name} of length {len(holder)}" + f": {', '.join(shown)}" * (shapes and bool(shown))


def _described(name: Any, value: Any) -> str:
    if not isinstance(value, Tensor):
        return str(name)
    return f"{name} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _one_per_sample(batch: Any, size: int | None) -> list[Key]:
    """The entries of a batch of `size` samples that hold one number per sample, (B,) or (B, 1): what may be its labels."""
    named: Mapping[Any, Any] = named_entries(batch) or _attributes(batch)
    entries = dict(enumerate(batch)) if isinstance(batch, (tuple, list)) and not named else named
    return [
        key
        for key, each in entries.items()
        if isinstance(each, Tensor) and each.shape[:1] == (size,) and each.numel() == size
    ]


def _labels_hint(batch: Any) -> str:
    """Say which setting names the labels, and which entries may be meant."""
    found = _one_per_sample(batch, current_size())
    key = found[-1] if found else "…"
    where = f"One number per sample is in {' and '.join(map(str, found))}. " if found else ""
    return (
        f"{where}Say which holds the labels: task: {{name: …, labels: {key}}}, or --task.labels {key}; in Python "
        f'task={{"name": …, "labels": {key if key == "…" else json.dumps(key)}}}'
    )


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2


def label_key(batch: Any, label_names: Sequence[str] = LABEL_NAMES) -> Key:
    """Find where the labels are: the second of a pair, or the first of `label_names`.

    Raises:
        DataError: it is neither a pair, nor has such an entry.
    """
    if _is_pair(batch):
        return 1
    named = named_entries(batch)
    found = [name for name in label_names if named is not None and name in named]
    if found:
        return found[0]
    if named is None:
        raise DataError(
            f"the batch is {describe(batch)}, where a pair (inputs, labels) or something with names was expected. {_remedy(batch)}."
        )
    raise DataError(
        f"no entry of the batch is called {', '.join(label_names[:-1])} or {label_names[-1]}; it is {describe(batch)}. "
        f"{_labels_hint(batch)}. The model is called with all other tensors by name, or with a single one as it is, unless inputs says with which ('*' is the whole batch); of several outputs, "
        "outputs says which is attributed."
    )


def _remedy(batch: Any) -> str:
    if _is_list_of_objects(batch):
        return _by_function()
    own = "; or write a Task with an `output` of your own"
    if isinstance(batch, Tensor) or (isinstance(batch, (tuple, list)) and len(batch) == 1):
        return f"It has no labels: give the dataset inputs and labels, as in TensorDataset(X, y){own}"
    if isinstance(batch, (tuple, list)):
        labels = (_one_per_sample(batch, current_size()) or [1])[-1]
        others = [place for place in range(len(batch)) if place != labels] if labels != 1 else [0]
        inputs = others[0] if len(others) == 1 else others
        return (
            f"Say which positions are which: task: {{name: …, inputs: {inputs}, labels: {labels}}}, or --task.inputs '{inputs}' --task.labels "
            f'{labels}; in Python task={{"name": …, "inputs": {inputs}, "labels": {labels}}}{own}'
        )
    if _attributes(batch):
        labels = (_one_per_sample(batch, current_size()) or ["y"])[-1]
        return (
            f"Name the attribute that holds the labels, and what the model is called with: task: {{name: …, inputs: '*', labels: {labels}}} "
            f"(--task.inputs '*' --task.labels {labels}) if its forward takes the whole batch, or inputs: x, or [x, …], if it takes "
            f"attributes{own}"
        )
    return f"Return such a batch from the collate function{own}"


def _first_of_pair(inputs: Any, preferred: Sequence[str]) -> Call:
    if isinstance(inputs, Mapping):
        call = _default_inputs(inputs, (), preferred)
        return replace(call, of_pair=True) if isinstance(call, Arguments) else call
    several = isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields") and len(inputs) > 1
    return OneOrSeveral(inputs) if several else Arguments((inputs,))


def is_text(value: Any) -> bool:
    """Whether an entry of a batch is the text of each sample."""
    return isinstance(value, list) and len(value) > 0 and all(isinstance(each, str) for each in value)


def _default_inputs(batch: Any, taken: Sequence[Key], preferred: Sequence[str]) -> Call:
    named = named_entries(batch)
    if named is None:
        raise DataError(f"labels are named, but not inputs, and the batch is {describe(batch)}. {_remedy(batch)}.")
    found = {name: value for name, value in named.items() if name not in taken and isinstance(value, Tensor)}
    for name in preferred:
        if name in found and len(found) > 1:
            return MainAndOthers(name, found)
    if not found:
        texts = [name for name, value in named.items() if is_text(value)]
        tokenize = "".join(
            f" A model takes tokens, not text: dataset = dataset.map(lambda rows: tokenizer(rows[{name!r}], truncation=True), "
            "batched=True), and a DataCollatorWithPadding as collate_fn."
            for name in texts[:1]
        )
        raise DataError(
            f"the batch holds no tensor in addition to the labels to call the model with; it is {describe(batch)}.{tokenize}"
        )
    return Arguments(tuple(found.values())) if len(found) == 1 else Arguments(kwargs=found)
