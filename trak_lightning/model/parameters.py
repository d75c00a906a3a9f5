"""Select the parameters to attribute to: patterns of names, of module types, or the last layers."""

import difflib
import logging
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import cache

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from trak_lightning.errors import SettingsError, UnsupportedModelError
from trak_lightning.model.adapters import IS_TRAINABLE, frozen_by_peft
from trak_lightning.model.compiled import original_name

log = logging.getLogger(__name__)


def select(model: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """The parameters of `model` that require a gradient and that `patterns` select, in the model's order.

    Patterns apply in order and later ones win; a leading ``!`` removes what the pattern matches. If the first pattern
    removes, the selection starts with all parameters.

    * ``layer4.*``, ``*.bias``, ``*lora_*``: parameter names, with the wildcards of file names
    * ``type:LayerNorm``: all parameters of modules of a class, by its name or that of a base class
    * ``last:1``: the last layer; ``last:3``: the last three modules that own a parameter

    Raises:
        SettingsError: a pattern matches nothing (suggests the nearest names), or selects frozen parameters only.
        UnsupportedModelError: a parameter has no shape yet, or is no leaf of autograd.
    """
    named = {original_name(name): parameter for name, parameter in model.named_parameters()}
    lazy = [name for name, parameter in named.items() if is_lazy(parameter)]
    if lazy:
        raise UnsupportedModelError(
            f"{len(lazy)} parameters of {type(model).__name__} have no shape before the first batch, such as {lazy[0]}. Run one "
            "batch through the model first: model(batch)."
        )
    copied = [name for name, parameter in named.items() if not parameter.is_leaf]
    if copied:
        raise UnsupportedModelError(
            f"{len(copied)} parameters of {type(model).__name__}, such as {copied[0]}, are no leaves of autograd, so they receive no gradient: "
            "copy.deepcopy of a TorchScript module makes such. Make them leaves: "
            "[each.detach_().requires_grad_() for each in model.parameters() if not each.is_leaf]."
        )
    trainable = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    if patterns is None:
        return trainable
    if isinstance(patterns, str):
        raise SettingsError(f"parameters must be a list of patterns, got the string {patterns!r}; write [{patterns!r}]")
    if not patterns:
        raise SettingsError("parameters is an empty list; leave it out to attribute to all that require a gradient")
    chosen = set(trainable) if patterns[0].startswith("!") else set()
    for pattern in patterns:
        found = _matching(model, named, pattern.removeprefix("!"))
        if pattern.startswith("!"):
            chosen -= found
        elif not found & set(trainable):
            raise SettingsError(
                f"parameters: {pattern!r} matches {len(found)} parameters of {type(model).__name__}, all of them frozen, such as "
                f"{sorted(found)[0]}. {how_to_unfreeze(model)}"
            )
        else:
            chosen |= found & set(trainable)
    if trainable and not chosen:
        raise SettingsError(f"parameters: {list(patterns)} leave nothing of {type(model).__name__} to attribute to")
    return {name: parameter for name, parameter in trainable.items() if name in chosen}


def how_to_unfreeze(model: nn.Module) -> str:
    """Advice for a model whose trained parameters do not require a gradient."""
    if frozen_by_peft(model):
        return f"PEFT loads adapters for inference, without gradients, unless told otherwise: {IS_TRAINABLE}."
    return "Unfreeze those that were trained: requires_grad_(True)."


def _matching(model: nn.Module, named: dict[str, nn.Parameter], pattern: str) -> set[str]:
    kind, separator, value = pattern.partition(":")
    if separator and kind not in _KINDS:
        raise SettingsError(
            f"parameters: {pattern!r} begins with {kind!r}; write a parameter name, type:CLASS or last:NUMBER"
        )
    if not separator:
        found, known = {name for name in named if fnmatchcase(name, pattern)}, list(named)
    else:
        parameters, known = _KINDS[kind](model, value)
        wanted = {id(parameter) for parameter in parameters}
        found = {name for name, parameter in named.items() if id(parameter) in wanted}
    if not found:
        _explain_tied(model, pattern)
        nearest = difflib.get_close_matches(value or pattern, known, n=3, cutoff=0.3) or known[:3]
        raise SettingsError(
            f"parameters: {pattern!r} matches nothing in {type(model).__name__}; the nearest are "
            f"{', '.join(dict.fromkeys(nearest))}. Patterns are those of file names, such as 'layer4.*' or '*.bias'."
        )
    return found


def _explain_tied(model: nn.Module, pattern: str) -> None:
    """Refuse a pattern that matches only a further name of parameters that two modules share."""
    first = {id(parameter): original_name(name) for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if fnmatchcase(original_name(name), pattern):
            used = first[id(parameter)]
            raise SettingsError(
                f"parameters: {pattern!r} matches {original_name(name)}, which is the same tensor as {used} (the weights are tied). Its "
                f"gradient is the sum over both modules, and it goes by its first name: write {used!r}."
            )


def _of_type(model: nn.Module, name: str) -> tuple[list[nn.Parameter], list[str]]:
    parameters: list[nn.Parameter] = []
    known: list[str] = []
    for module in model.modules():
        names = [cls.__name__ for cls in type(module).__mro__ if cls not in (nn.Module, object)]
        known += names[:1] if next(module.parameters(), None) is not None else []
        if name in names:
            parameters += module.parameters()
    if name == "Linear" and "Conv1D" in known:
        _say_of_conv1d(type(model).__name__)
    return parameters, known


@cache
def _say_of_conv1d(model: str) -> None:  # once: parameters are selected again and again
    log.warning(
        "parameters  type:Linear leaves out the layers of class Conv1D, which are most of the linear layers of GPT-2: write "
        "type:Conv1D as well."
    )


def _last(model: nn.Module, number: str) -> tuple[list[nn.Parameter], list[str]]:
    if not number.isdigit() or int(number) < 1:
        raise SettingsError(f"parameters: 'last:{number}' must name a positive number of layers, as in 'last:1'")
    inside: set[nn.Module] = set()  # of parametrizations, such as weight_norm, whose parameters are those of the layer
    own = []
    for module in model.modules():
        if module not in inside:
            own.append(list(module.parameters(recurse=False)))
            if is_parametrized(module):
                inside.update(module.parametrizations.modules())  # type: ignore[union-attr]
                own[-1] += module.parametrizations.parameters()  # type: ignore[union-attr]
    layers = [parameters for parameters in own if any(parameter.requires_grad for parameter in parameters)]
    return [parameter for parameters in layers[-int(number) :] for parameter in parameters], []


_KINDS: dict[str, Callable[[nn.Module, str], tuple[list[nn.Parameter], list[str]]]] = {"type": _of_type, "last": _last}
