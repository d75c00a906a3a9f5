"""Find where Python decides what to do with a whole batch by a value that depends on the content of its samples.

A loop that ends when a mean over the batch is small may run for another number of steps on a sample alone, and a gradient that is turned
off by a maximum may be on. Outputs and gradients then depend on the batch, in some batches and not in others. Operations do not show it.
"""

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NEGATIONS = {"logical_not", "bitwise_not"}
_UNCHANGED = {"_to_copy", "clone", "detach", "view", "squeeze", "unsqueeze", "reshape", "expand", "alias"}
_OPPOSITE = {"all": "any", "any": "all"}
_QUESTIONS = {"_is_all_true": "all", "_is_any_true": "any"}
_EXTREMES = {
    **dict.fromkeys([("max", "gt"), ("max", "ge"), ("min", "lt"), ("min", "le")], "any"),
    **dict.fromkeys([("max", "lt"), ("max", "le"), ("min", "gt"), ("min", "ge")], "all"),
}
"""Whether a comparison of the largest or smallest number asks for any or for all of them."""
_PACKAGE, _ROOM = __name__.partition(".")[0], __name__.rpartition(".")[0]
_WATCHING = (__name__, f"{_ROOM}.content_sizes")
_CERTAIN = {("all", True), ("any", False)}
"""Answers that hold for each sample alone if they hold for the batch."""


class Decisions:
    """The numbers that Python reads in a pass, of those that are computed from floating-point numbers of the batch.

    Integers do not count: they are lengths and numbers of experts, and show in sizes. Nor do zeros and ones in the batch, which are masks,
    of whatever type.
    """

    def __init__(self) -> None:
        self.reads = 0
        """How many such numbers were read."""
        self.doubtful: Counter[str] = Counter()
        """Where those were read, in the user's code, that may be another answer for a sample alone."""
        self._asks: dict[int, str] = {}
        """For the memory of truth values that come from a comparison of floating-point numbers: ``all`` or ``any`` if they tell
        of all or any entries, else the operation that made them."""
        self._extremes: dict[int, str] = {}
        self._batch: frozenset[int] = frozenset()

    def begin(self, batch: Iterable[int]) -> None:
        """Begin a pass, given the keys for the memory of the batch."""
        self._batch = frozenset(batch)

    def note(self, name: str, args: Any, given: list[tuple[int, Tensor]], made: list[tuple[int, Tensor]]) -> None:
        """Note an operation on numbers that depend on the batch; tensors come with a key for their memory."""
        for key, tensor in made:
            self._asks.pop(key, None)
            self._extremes.pop(key, None)
            if tensor.dtype == torch.bool:
                if (asks := self._asked(name, args, given)) is not None:
                    self._asks[key] = asks
            elif tensor.numel() == 1 and name in ("max", "min", "amax", "amin"):
                self._extremes[key] = name[-3:]

    def _asked(self, name: str, args: Any, given: list[tuple[int, Tensor]]) -> str | None:
        before = [self._asks[key] for key, _ in given if key in self._asks]
        if not before:
            extreme = self._extremes.get(given[0][0], "") if given else ""
            alone = len(args) > 1 and args[0] is given[0][1] and not isinstance(args[1], Tensor)
            floating = any(tensor.is_floating_point() and not self._is_mask(key, tensor) for key, tensor in given)
            return _EXTREMES.get((extreme, name) if alone else ("", ""), name) if floating else None
        if name in _NEGATIONS:
            return _OPPOSITE.get(before[0], name)
        return before[0] if name in _UNCHANGED else _QUESTIONS.get(name, name)

    def _is_mask(self, key: int, tensor: Tensor) -> bool:
        # Of the batch only: what a model computes may be zeros and ones by a threshold that the numbers of a sample cross.
        return key in self._batch and bool(((tensor == 0) | (tensor == 1)).all())

    def read(self, given: list[tuple[int, Tensor]], value: Any) -> None:
        """Note that Python has read numbers that depend on the batch: a truth value or number, None if there were many."""
        floating = any(tensor.is_floating_point() for _, tensor in given)
        asks = self._asks.get(given[0][0]) if len(given) == 1 else "all" if floating else None
        place = _place() if floating or asks is not None else None
        if place is None:
            return
        self.reads += sum(tensor.numel() for _, tensor in given)
        if not (isinstance(value, bool) and (asks, value) in _CERTAIN):
            self.doubtful[place] += 1


def _place() -> str | None:
    """The line of code outside of torch that is running; None if it is one of this package, whose tasks look at what models return."""
    frame: Any = sys._getframe(1)
    while frame.f_globals["__name__"] in _WATCHING or frame.f_globals["__name__"].partition(".")[0] == "torch":
        frame = frame.f_back
    if frame.f_globals["__name__"].partition(".")[0] == _PACKAGE:
        return None
    return f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"


class Answers(TorchFunctionMode):
    """Note the truth values that Python reads in a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if type(out) is bool and getattr(func, "__name__", "") in _ASKING:
            self.values.append(out)
        return out


_ASKING = {"__bool__", "item", "equal", "allclose", "is_nonzero"}
