"""A plan assigns the gradient of every parameter to a module. It must cover all parameters before any block is emitted."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from trak_lightning.errors import UnsupportedModelError
from trak_lightning.extractors.base import RuleUse
from trak_lightning.extractors.hooks.placement import Placement, Where
from trak_lightning.extractors.hooks.probe import Places
from trak_lightning.extractors.rules import LayerRule, find_rule
from trak_lightning.extractors.state import parameters_of
from trak_lightning.gradients import ParameterLayout
from trak_lightning.model.dtensor import any_sharded


@dataclass(frozen=True)
class Layer:
    """A module with a rule. `names` maps its own parameter names to those of the layout; `place` is where its output holds the
    samples."""

    name: str
    module: nn.Module
    rule: LayerRule
    names: Mapping[str, str]
    place: Where


@dataclass(frozen=True)
class Inner:
    """A module inside a re-run module, whose outputs are replayed. `inputs` are the arguments that depend on the re-run module's parameters."""

    module: nn.Module
    inputs: dict[int, Where]
    outputs: dict[int, Where]


@dataclass(frozen=True)
class Rerun:
    """A module that is run again to compute the gradients of the parameters in `names`. `outputs` are those that depend on them."""

    name: str
    module: nn.Module
    names: Mapping[str, str]
    inputs: dict[int, Where]
    outputs: dict[int, Where]
    inner: tuple[Inner, ...]


@dataclass(frozen=True)
class Plan:
    """What a tape records. `unused` are the parameters that no output has depended on so far; `copies` names the modules whose
    inputs are changed in place after the call, and must be copied. `decides`: Python decides by values of the batch as a whole."""

    layers: tuple[Layer, ...]
    reruns: tuple[Rerun, ...]
    unused: tuple[str, ...]
    copies: frozenset[str]
    decides: bool = False

    def account(self, layout: ParameterLayout) -> list[RuleUse]:
        """Count the parameters of the layout by the rule that handles them. A tied parameter counts once, where it occurs first."""
        modules: dict[str, list[Mapping[str, str]]] = {}
        for layer in self.layers:
            modules.setdefault(type(layer.module).__name__, []).append(layer.names)
        for rerun in self.reruns:
            modules.setdefault(f"{type(rerun.module).__name__} (re-run)", []).append(rerun.names)
        if self.unused:
            modules["not used by the output"] = [{name: name for name in self.unused}]
        counted: set[str] = set()
        uses = []
        for rule, owners in modules.items():
            names = {name for own in owners for name in own.values()} - counted
            counted |= names
            uses.append(RuleUse(rule, len(owners), sum(layout.by_name[name].numel for name in names)))
        return uses


@dataclass
class Location:
    """One of the places where a model holds a parameter; tied parameters have several. `handler` is the path of the module that
    computes its gradient: its owner, or a module that encloses the owner."""

    path: str
    name: str
    handler: str
    lifted: bool = field(default=False)


class Handlers:
    """Every parameter of the layout, with its handler: the module that computes its gradient."""

    def __init__(self, model: nn.Module, layout: ParameterLayout) -> None:
        self._model = model
        self.modules = dict(model.named_modules(remove_duplicate=False))
        names = {id(parameter): name for name, parameter in parameters_of(model, layout.by_name).items()}
        self.locations: list[Location] = []
        seen = set()
        for path, parameter in model.named_parameters(remove_duplicate=False):
            owner, _, key = path.rpartition(".")
            if id(parameter) in names and (id(self.modules[owner]), key) not in seen:
                seen.add((id(self.modules[owner]), key))
                self.locations.append(Location(path, names[id(parameter)], owner))
        self._named: dict[str, list[Location]] = {}
        for location in self.locations:
            self._named.setdefault(location.name, []).append(location)

    def settle(self, used: set[str], called: Iterable[nn.Module]) -> None:
        """Lift the parameters of modules that are never called (containers, or modules whose parameters another one uses) to an
        enclosing module that is called."""
        seen = set(called)
        for location in self._of(used):
            if self.modules[location.handler] not in seen and (location.lifted or not self._elsewhere(location, seen)):
                self.lift(location, seen)

    def active(self, used: set[str], called: Iterable[nn.Module]) -> dict[str, dict[str, str]]:
        """Map the path of every called handler to its parameters: name in the module → name in the layout."""
        seen, found = set(called), dict[str, dict[str, str]]()
        for location in self._of(used):
            if self.modules[location.handler] in seen:
                key = location.path[len(location.handler) + 1 :] if location.handler else location.path
                found.setdefault(location.handler, {})[key] = location.name
        return found

    def lift(self, location: Location, called: set[nn.Module]) -> None:
        """Make the next enclosing module that is called the handler of a parameter.

        Raises:
            UnsupportedModelError: no enclosing module is called.
        """
        handler = location.handler
        while handler:
            handler = handler.rpartition(".")[0]
            if self.modules[handler] in called:
                location.handler, location.lifted = handler, True
                return
        raise UnsupportedModelError(
            f"the hooks extractor cannot compute the gradient of each sample of a batch for parameter {location.name} of "
            f"{type(self._model).__name__}. Either it is used outside the forward of every module that contains it, or samples do not have "
            "rows of their own there or before it, as the nodes of graphs that are joined. Use extractor='auto' or 'iterative', which computes one "
            f"sample at a time, or leave the parameter out: parameters=['!{location.name}']."
        )

    def adopt(self, used: set[str], handlers: set[str]) -> set[str]:
        """Assign parameters that were never used to the one of `handlers` that encloses them, if other parameters were lifted to it;
        return their names."""
        lifting = {location.handler for location in self._of(used) if location.lifted} & handlers
        found = set()
        for location in self.locations:
            handler = next((handler for handler in lifting if location.path.startswith(f"{handler}.")), None)
            if location.name not in used and handler is not None:
                location.handler, location.lifted = handler, True
                found.add(location.name)
        return found

    def at(self, name: str, handler: str | None = None) -> list[Location]:
        """The locations of a parameter of the layout, or only those with this handler."""
        return [location for location in self._named[name] if handler in (None, location.handler)]

    def _of(self, used: set[str]) -> list[Location]:
        return [location for location in self.locations if location.name in used]

    def _elsewhere(self, location: Location, called: set[nn.Module]) -> bool:
        return any(self.modules[other.handler] in called for other in self.at(location.name) if other is not location)


def layer_of(
    name: str, module: nn.Module, names: Mapping[str, str], places: Places
) -> tuple[Layer | None, dict[str, str]]:
    """The layer whose rule handles some of these parameters, if there is one, and the remaining parameters."""
    rule = None if _changed_by_hooks(module) else find_rule(module)
    ruled = {key: value for key, value in names.items() if rule is not None and rule.handles(key)}
    rest = {key: value for key, value in names.items() if key not in ruled}
    if rule is None or not ruled:
        return None, rest
    return Layer(name, module, rule, ruled, places.outputs.get(0, "unknown")), rest


def _changed_by_hooks(module: nn.Module) -> bool:
    """Whether hooks of the user may change the module's output or its gradient, in some batches and not in others, where no graph
    shows it. A re-run runs them, too."""
    found = [*module._forward_hooks.values(), *module._backward_hooks.values(), *module._backward_pre_hooks.values()]
    # Gradient checkpointing in transformers and PEFT marks the output of embeddings, and changes nothing.
    marks = [hook for hook in found if getattr(hook, "__name__", "").startswith("make_inputs_require_grad")]
    return len(found) > len(marks) and not any_sharded(module.parameters())  # which have hooks that only gather them


def rule_applies(layer: Layer) -> bool:
    """Whether the dimensions that hold the samples are those that the layer's rule needs."""
    if layer.place == "one":
        return not layer.rule.whole_call
    if not isinstance(layer.place, Placement) or len(layer.place.dims) > 1:
        return False
    return layer.rule.positions or layer.place.dim == 0


def inner_modules(
    module: nn.Module,
    names: Mapping[str, str],
    called: Mapping[nn.Module, Any],
    replayable: Callable[[nn.Module, bool], bool],
) -> list[nn.Module]:
    """The outermost modules in `module` that own parameters, none of `names` among them, and are `replayable`: a function of the
    module, and of whether it is inside one that is not."""
    found: list[nn.Module] = []

    def visit(parent: nn.Module, path: str, deep: bool) -> None:
        for key, child in parent.named_children():
            inside = f"{path}{key}."
            if any(name.startswith(inside) for name in names) or child not in called:
                visit(child, inside, deep)
            elif next(child.parameters(), None) is None:
                continue
            elif not replayable(child, deep):
                visit(child, inside, True)
            elif child not in found:
                found.append(child)

    visit(module, "", False)
    return found
