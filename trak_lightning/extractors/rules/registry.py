"""The registry of layer rules: find the rule for a layer, or register one."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from trak_lightning.gradients import GradientBlock
from trak_lightning.registry import class_path

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
"""``rule(module, names, call)``, like `Rule`; tensors have the layout that the module uses, and those of the blocks have B first."""


@dataclass(frozen=True)
class LayerRule:
    """A rule, and the layers and parameters that it handles.

    Args:
        function: the rule.
        parameters: a regular expression that matches the parameters that the rule handles, by their names in the layer.
        when: whether the rule handles this module.
        positions: whether any dimension of the input but the last may hold the samples, since the layer computes the same
            function at every position. Otherwise the first must.
        whole_call: whether `function` is a `CallRule`.
    """

    function: Any
    parameters: str
    when: Callable[[nn.Module], bool]
    positions: bool
    whole_call: bool

    def handles(self, parameter: str) -> bool:
        """Whether the rule handles the parameter of this name in the layer."""
        return re.fullmatch(self.parameters, parameter) is not None


_RULES: dict[type[nn.Module] | str, LayerRule] = {}


def rule_for(
    *classes: type[nn.Module] | str,
    parameters: str = "weight|bias",
    when: Callable[[nn.Module], bool] = lambda module: True,
    positions: bool = False,
) -> Callable[[Rule], Rule]:
    """Register a `Rule` for these classes. Give a class of an optional library by its dotted name."""

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
    """The rule of this module, or None. A subclass that overrides forward is a different layer and has none."""
    if "forward" in vars(module):
        return None
    for cls in type(module).__mro__:
        rule = _RULES.get(cls) or _RULES.get(class_path(cls))
        if rule is not None:
            return rule if type(module).forward is getattr(cls, "forward", None) and rule.when(module) else None
    return None
