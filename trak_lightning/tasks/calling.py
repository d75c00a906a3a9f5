"""Calling a model with entries of a batch, in the way that the model can be called.

A model says which arguments it takes by the signature of its ``forward``. A stand-in for a model (the ``functional``
extractor passes one) and a wrapper (PEFT, ``torch.compile``) take anything and complain later, so they are asked by trying:
Python checks arguments before anything is computed.
"""

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from trak_lightning.errors import DataError
from trak_lightning.run.formatting import counted

_CANNOT_BIND = re.compile(
    r"unexpected keyword argument '(?P<name>\w+)'|multiple values for argument|positional arguments? but|"
    r"missing \d+ required positional argument"
)

_BY_NAME = re.compile(r"invalid data type 'str'|too many indices for tensor|too many dimensions 'str'")
"""What torch says of ``tensor["name"]``."""

_ATTRIBUTE = re.compile(r"'Tensor' object has no attribute '(?P<name>\w+)'")

_WHOLE = "If its forward takes the whole {} as one argument, write inputs: {}, or --task.inputs {}."


@dataclass(frozen=True)
class Arguments:
    """What a model is called with, exactly."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    of_pair: bool = False
    """Whether these are entries of the first of a pair, rather than of the batch."""
    names: Collection[str] = ()
    """The names of all entries of the batch."""

    def call(self, model: nn.Module) -> Any:
        """The model's output.

        Raises:
            DataError: the model does not take an entry of the batch.
        """
        kwargs = self.kwargs or {}
        whole = (
            _WHOLE.format("first entry of the batch", 0, 0) if self.of_pair else _WHOLE.format("batch", "'*'", "'*'")
        )
        try:
            return model(*self.args, **kwargs)
        except (AttributeError, TypeError, IndexError) as error:
            attribute = _ATTRIBUTE.search(str(error))
            if _BY_NAME.search(str(error)) or (attribute and attribute["name"] in self.names):
                raise DataError(
                    f"the model cannot use the tensor that it was called with as a batch ({error}). {whole}"
                ) from None
            if (refused := _refused(error)) not in kwargs:
                _require_arguments(model, *self.args, **kwargs)
                raise
            raise DataError(
                f"the model does not take {refused!r}, one of the entries of the batch that it was called with: "
                f"{', '.join(kwargs)}{_takes(model)}. Name those that it takes, or one that is its only argument: "
                f"task: {{name: …, inputs: {_taken(model, kwargs)}}}. {whole}"
            ) from None


@dataclass(frozen=True)
class OneOrSeveral:
    """Several values: as several arguments if the model takes so many, otherwise as one that holds them all."""

    values: tuple[Any, ...] | list[Any]

    def call(self, model: nn.Module) -> Any:
        """The model's output."""
        signature = _signature(model)
        if signature is not None:
            if _free(signature, *self.values) is not None:
                return model(*self.values)
            _require_arguments(model, self.values)
            return model(self.values)
        try:
            return model(*self.values)
        except TypeError as error:
            if not _CANNOT_BIND.search(str(error)):
                raise
            return model(self.values)


@dataclass(frozen=True)
class MainAndOthers:
    """Entries by their names, of which `main` may be passed without its name, and others left out where the model has no
    argument for them: an index, a file name."""

    main: str
    named: Mapping[str, Any]

    def call(self, model: nn.Module) -> Any:
        """The model's output.

        Raises:
            DataError: the model has arguments that none of the entries is called like, and entries are left over.
        """
        signature = _signature(model)
        if signature is None:
            return self._by_trying(model)
        taken = {name: value for name, value in self.named.items() if name in signature.parameters}
        first = () if self.main in taken else (self.named[self.main],)
        left = [name for name in self.named if name not in taken and name != self.main]
        free = _free(signature, *first, **taken)
        if free is None or (first and left and free):
            raise DataError(
                f"the model takes {', '.join(signature.parameters)}, and the batch holds {', '.join(self.named)}: nothing says "
                f"which entry is {' and '.join(free or signature.parameters)}. Name it: "
                f"task: {{name: …, inputs: {{{', '.join(f'{name}: …' for name in signature.parameters)}}}}}; or name the only "
                f"input: inputs: {self.main}."
            )
        return model(*first, **taken)

    def _by_trying(self, model: nn.Module) -> Any:
        args: tuple[Any, ...] = ()
        kwargs = dict(self.named)
        while True:
            try:
                return model(*args, **kwargs)
            except TypeError as error:
                if (refused := _refused(error)) not in kwargs:
                    raise
                value = kwargs.pop(refused)
                args = (value,) if refused == self.main else args


Call: TypeAlias = Arguments | OneOrSeveral | MainAndOthers
"""A way to call a model."""


def exact(call: Call) -> Arguments:
    """The arguments of a call, for a task that adds some of its own."""
    if isinstance(call, Arguments):
        return call
    return Arguments(tuple(call.values)) if isinstance(call, OneOrSeveral) else Arguments(kwargs=call.named)


def _signature(model: Callable[..., Any]) -> inspect.Signature | None:
    """How the model can be called; None if it takes anything."""
    try:
        signature = inspect.signature(model.forward if isinstance(model, nn.Module) else model)
    except (TypeError, ValueError):  # built-in and scripted functions have none
        return None
    anything = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return None if any(parameter.kind in anything for parameter in signature.parameters.values()) else signature


def _takes(model: nn.Module) -> str:
    signature = _signature(model)
    return "" if signature is None else f"; it takes {', '.join(signature.parameters) or 'nothing'}"


def _taken(model: nn.Module, names: Collection[str]) -> str:
    """The entries that are arguments of the model, as a setting; dots, if there are none."""
    signature = _signature(model)
    found = [name for name in names if signature is not None and name in signature.parameters]
    return f"[{', '.join(found)}]" if found else "…"


def _free(signature: inspect.Signature, *args: Any, **kwargs: Any) -> list[str] | None:
    """The arguments that would be left to pass a tensor to; None if the model cannot be called like this."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return None
    return [
        name
        for name, parameter in signature.parameters.items()
        if name not in bound.arguments and parameter.default is None  # other defaults are flags and sizes
    ]


def _require_arguments(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Raises: DataError: the model takes other arguments than these."""
    signature = _signature(model)
    if signature is None:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = [f"{counted(len(args), 'argument')} without a name"] * bool(args) + list(kwargs)
        entries = ", ".join(f"{name}: …" for name in signature.parameters)
        raise DataError(
            f"the forward of {type(model).__name__} takes {', '.join(signature.parameters) or 'nothing'}, and was called with "
            f"{', '.join(given) or 'nothing'}: {error}. Name the entry of the batch, or its position, for each of them: "
            f"task: {{name: …, inputs: {{{entries}}}}}. If none of the entries is a label, another task fits, such as contrastive "
            "for pairs of images and texts, or loss for a function of your own: trak plugins lists all."
        ) from None


def _refused(error: Exception) -> str:
    """The name of the argument that Python says is unexpected; empty if that is not what it says."""
    found = _CANNOT_BIND.search(str(error))
    return (found and found["name"]) or ""
