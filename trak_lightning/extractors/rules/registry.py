"""Which rule does which layer."""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from torch import Tensor, nn

from trak_lightning.gradients import GradientBlock

Names: TypeAlias = Mapping[str, str]
"""The layer's own parameters that are attributed to: ``weight`` → ``net.0.weight``."""

Rule: TypeAlias = Callable[[nn.Module, Names, Tensor, Tensor], Iterator[GradientBlock]]
"""``rule(module, names, input, output_grad)``: yields the blocks of one call of the layer. Both tensors have B first, and
are of one floating-point dtype (integer inputs of embeddings excepted)."""

_RULES: dict[type[nn.Module], tuple[Rule, Callable[[nn.Module], bool]]] = {}


def rule_for(
    *classes: type[nn.Module], when: Callable[[nn.Module], bool] = lambda module: True
) -> Callable[[Rule], Rule]:
    """Register a rule for these classes, for the modules that satisfy `when`."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(classes, (rule, when)))
        return rule

    return register


def find_rule(module: nn.Module) -> Rule | None:
    """The rule of this module, or None. A subclass with a forward of its own is another layer, and has none."""
    for cls in type(module).__mro__:
        if cls in _RULES:
            rule, when = _RULES[cls]
            return rule if type(module).forward is cls.forward and when(module) else None
    return None
