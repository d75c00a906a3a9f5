"""Which rule does which layer."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from trak_lightning.gradients import GradientBlock

Names: TypeAlias = Mapping[str, str]
"""The layer's own parameters that are attributed to: ``weight`` → ``net.0.weight``."""

Rule: TypeAlias = Callable[[nn.Module, Names, Tensor, Tensor], Iterator[GradientBlock]]
"""``rule(module, names, input, output_grad)``: yields the blocks of one call of the layer. Both tensors have B first, and
are of one floating-point dtype (integer inputs of embeddings excepted)."""


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer whose rule needs more than a first argument and one output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output_grads: list[Tensor | None]
    """The gradient of every tensor in the flattened output, None where there is none."""


CallRule: TypeAlias = Callable[[nn.Module, Names, LayerCall], Iterator[GradientBlock]]
"""``rule(module, names, call)``, as `Rule`; tensors are as the module had them, those of the blocks have its batch first."""


@dataclass(frozen=True)
class LayerRule:
    """A rule, and what it can do.

    Args:
        function: the rule.
        parameters: a regular expression: the names of parameters, relative to the layer, that it does.
        when: the modules that it does.
        positions: whether the samples may be in any dimension of the input but the last: the layer does the same at
            every position. Otherwise they must be in the first.
        whole_call: whether `function` is a `CallRule`.
    """

    function: Any
    parameters: str
    when: Callable[[nn.Module], bool]
    positions: bool
    whole_call: bool

    def does(self, parameter: str) -> bool:
        return re.fullmatch(self.parameters, parameter) is not None


_RULES: dict[type[nn.Module] | str, LayerRule] = {}


def rule_for(
    *classes: type[nn.Module] | str,
    parameters: str = "weight|bias",
    when: Callable[[nn.Module], bool] = lambda module: True,
    positions: bool = False,
) -> Callable[[Rule], Rule]:
    """Register a `Rule` for these classes. A class of a library that need not be installed is given by its dotted name."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(classes, LayerRule(rule, parameters, when, positions, whole_call=False)))
        return rule

    return register


def call_rule_for(
    *classes: type[nn.Module], parameters: str, when: Callable[[nn.Module], bool] = lambda module: True
) -> Callable[[CallRule], CallRule]:
    """Register a `CallRule` for these classes."""

    def register(rule: CallRule) -> CallRule:
        _RULES.update(dict.fromkeys(classes, LayerRule(rule, parameters, when, positions=True, whole_call=True)))
        return rule

    return register


def find_rule(module: nn.Module) -> LayerRule | None:
    """The rule of this module, or None. A subclass with a forward of its own is another layer, and has none."""
    if "forward" in vars(module):
        return None
    for cls in type(module).__mro__:
        rule = _RULES.get(cls) or _RULES.get(f"{cls.__module__}.{cls.__qualname__}")
        if rule is not None:
            return rule if type(module).forward is getattr(cls, "forward", None) and rule.when(module) else None
    return None
