"""Where a batch holds what the model is called with, and where it holds the labels: by name, or by position.

Names are those of mappings (a ``dict``, a ``BatchEncoding``), dataclasses and named tuples; positions are those of tuples and
lists.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from trak_lightning.errors import DataError

Key: TypeAlias = str | int
"""A name, or a position."""

Inputs: TypeAlias = Key | list[Key] | dict[str, Key] | None
"""Entries of a batch: one is the model's only argument; of several, named ones are passed by their names and others in order; in
a dict, argument → entry. None for the default of `split`."""

LABEL_NAMES = ("labels", "label", "label_ids", "targets", "target")
"""Where labels are looked for, in this order."""


@dataclass(frozen=True)
class Arguments:
    """What a model is called with."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None

    def call(self, model: nn.Module) -> Any:
        """The model's output.

        Raises:
            DataError: the model does not take an entry of the batch.
        """
        kwargs = self.kwargs or {}
        try:
            return model(*self.args, **kwargs)
        except TypeError as error:
            message = str(error)
            refused = [name for name in kwargs if f"unexpected keyword argument '{name}'" in message]
            if not refused:
                raise
            raise DataError(
                f"the model does not take {refused[0]!r}, which is one of the entries of the batch that it was called with: "
                f"{', '.join(kwargs)}. Name those that it takes, or one that is its only argument: task: {{name: …, inputs: [{_others(kwargs, refused[0])}]}}."
            ) from error


def split(
    batch: Any, inputs: Inputs = None, labels: Key | None = None, preferred: Sequence[str] = ()
) -> tuple[Arguments, Any]:
    """The model's arguments and the labels in a batch.

    By default a pair is (inputs, labels), and in a batch with names the labels are the first of `LABEL_NAMES`. Inputs are
    then the first of the `preferred` names, or else all other tensors, by their names; one alone is passed without name.
    If the first of a pair is a mapping, its tensors are passed by their names.

    Raises:
        DataError: an entry is not there, or nothing says which it is; names the entries that are.
    """
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    if labels is None:
        labels = 1 if pair else _label_name(batch)
    found = field(batch, labels, "labels")
    if inputs is not None:
        return select(batch, inputs), found
    if pair and labels == 1:
        named = isinstance(batch[0], Mapping)
        return _default_inputs(batch[0], (), preferred) if named else Arguments((batch[0],)), found
    return _default_inputs(batch, (labels,), preferred), found


def select(batch: Any, inputs: Key | Sequence[Key] | Mapping[str, Key], setting: str = "inputs") -> Arguments:
    """These entries of a batch, as the arguments of a model: see `Inputs`.

    Raises:
        DataError: an entry is not there. `setting` is the option that should name another.
    """
    if isinstance(inputs, (str, int)):
        return Arguments((field(batch, inputs, setting),))
    if isinstance(inputs, Mapping):
        return Arguments(kwargs={name: field(batch, key, setting) for name, key in inputs.items()})
    positions = [key for key in inputs if isinstance(key, int)]
    return Arguments(
        tuple(field(batch, key, setting) for key in positions),
        {key: field(batch, key, setting) for key in inputs if isinstance(key, str)},
    )


def tensors(batch: Any, *, hint: str) -> Arguments:
    """All tensors of a batch by their names, labels among them.

    Raises:
        DataError: it has no names; `hint` says what else can be done.
    """
    named = as_named(batch)
    if named is None:
        raise DataError(
            f"the batch is {describe(batch)}, and nothing in it has a name. Give a batch with names, {hint}."
        )
    return Arguments(kwargs={name: value for name, value in named.items() if isinstance(value, Tensor)})


def field(holder: Any, key: Key, setting: str, what: str = "the batch") -> Any:
    """One entry of a batch, or of `what` else holds things: by name, or by position.

    Raises:
        DataError: it is not there. Names the entries that are, and the option `setting` that should name one of them.
    """
    if isinstance(key, int) and isinstance(holder, (tuple, list)):
        if -len(holder) <= key < len(holder):
            return holder[key]
    elif isinstance(key, str) and (named := as_named(holder)) is not None and key in named:
        return named[key]
    raise DataError(
        f"{what} has no {'entry' if isinstance(key, str) else 'position'} {key!r} ({setting}); it is {describe(holder)}. Name "
        f"the right one: task: {{name: …, {setting}: …}}."
    )


def as_named(holder: Any) -> Mapping[str, Any] | None:
    """The entries of a mapping, a dataclass or a named tuple by their names; None for anything else."""
    if isinstance(holder, Mapping):
        return holder
    if is_dataclass(holder) and not isinstance(holder, type):
        return {entry.name: getattr(holder, entry.name) for entry in fields(holder)}
    if isinstance(holder, tuple) and hasattr(holder, "_fields"):
        return dict(zip(holder._fields, holder, strict=True))
    return None


def describe(holder: Any) -> str:
    """What holds things, and the names or the number of its entries, for an error message."""
    named = as_named(holder)
    name = type(holder).__name__
    if named is not None:
        return f"a {name} with {', '.join(map(str, named)) or 'no entries'}"
    return f"a {name} of length {len(holder)}" if isinstance(holder, (tuple, list)) else f"a {name}"


def _label_name(batch: Any) -> Key:
    named = as_named(batch)
    found = [name for name in LABEL_NAMES if named is not None and name in named]
    if found:
        return found[0]
    if named is None:
        raise DataError(
            f"the batch is {describe(batch)}, where a pair (inputs, labels) or something with names was expected. Say which "
            "positions are which: task: {name: …, inputs: 0, labels: 1}; or write a Task with an `output` of your own."
        )
    raise DataError(
        f"no entry of the batch is called {', '.join(LABEL_NAMES[:-1])} or {LABEL_NAMES[-1]}; it is {describe(batch)}. Say "
        "which holds the labels: task: {name: …, labels: …}."
    )


def _default_inputs(batch: Any, taken: Sequence[Key], preferred: Sequence[str]) -> Arguments:
    named = as_named(batch)
    if named is None:
        raise DataError(f"labels are named, but not inputs, and the batch is {describe(batch)}. Name both.")
    found = {name: value for name, value in named.items() if name not in taken and isinstance(value, Tensor)}
    for name in preferred:
        if name in found:
            return Arguments((found[name],))
    if not found:
        raise DataError(
            f"the batch holds no tensor besides the labels to call the model with; it is {describe(batch)}."
        )
    return Arguments(tuple(found.values())) if len(found) == 1 else Arguments(kwargs=found)


def _others(names: Mapping[str, Any], name: str) -> str:
    return ", ".join(other for other in names if other != name)
