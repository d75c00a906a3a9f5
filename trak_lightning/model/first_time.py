"""Say something of a model once, though it is looked at for every split and checkpoint, and Lightning makes Python forget its warnings."""

from collections.abc import Hashable
from weakref import WeakKeyDictionary

from torch import nn

_SAID: WeakKeyDictionary[nn.Module, set[Hashable]] = WeakKeyDictionary()


def first_time(model: nn.Module, what: Hashable) -> bool:
    """Whether this is asked for the first time of a model and of `what` is to be said or done."""
    said = _SAID.setdefault(model, set())
    known = what in said
    said.add(what)
    return not known
