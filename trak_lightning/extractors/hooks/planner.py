"""Make a plan, and rehearse it on a batch before any block is emitted."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import TrakError, UnsupportedModelError
from trak_lightning.extractors.audit import Audit, as_outputs, audit_coefficients, reference, require_graph
from trak_lightning.extractors.hooks.placement import Placement, Where
from trak_lightning.extractors.hooks.plan import (
    Handlers,
    Inner,
    Layer,
    Location,
    Plan,
    Rerun,
    inner_modules,
    layer_of,
    rule_applies,
)
from trak_lightning.extractors.hooks.probe import Probe, Side, dependent
from trak_lightning.extractors.hooks.tape import ChangedInPlace, Path, PlanFailed, Reached, Tape
from trak_lightning.extractors.state import requiring
from trak_lightning.gradients import GradientBlock, ParameterLayout, Sink, restart_of
from trak_lightning.model.autocast import without_autocast
from trak_lightning.model.dtensor import any_sharded
from trak_lightning.tasks.base import Task, batch_of


@dataclass(frozen=True)
class Covered:
    """A plan, and the rehearsal of it. `verified`: whether the gradients were compared with those of autograd, which they cannot
    be unless they are finite."""

    plan: Plan
    verified: bool
    output: Tensor
    path: Path
    looped: frozenset[str]


class Planner:
    """Plan for one model and layout; remember what earlier batches have shown.

    Every parameter is first assigned to the rule of the layer that owns it. Where that cannot work (the layer is never called,
    returns a value that all samples share, or an audit finds its gradients wrong), the parameter is lifted to the enclosing
    module, which is re-run, and so on up to the model itself.
    """

    def __init__(self, model: nn.Module, layout: ParameterLayout) -> None:
        self._model = model
        self._layout = layout
        self._handlers = Handlers(model, layout)
        self._probe = Probe(model)
        self._used: set[str] = set()
        self._copies: set[str] = set()
        self._whole: set[str] = set()
        self._dependent: dict[tuple[nn.Module, Side], set[int]] = {}

    def cover(self, task: Task, batch: SampleBatch, sink: Sink | None = None) -> Covered:
        """Make a plan for `batch`, and rehearse it. If `sink` is given, which has a method ``restart``, it receives the blocks of
        the rehearsal that succeeds.

        Raises:
            UnsupportedModelError: no plan gives correct gradients. Names the parameters.
        """
        weights = audit_coefficients(batch.size)
        expected = reference(self._model, task, batch, self._layout)
        self._used |= {name for name, grad in expected.grads.items() if grad is not None}
        # A module that the batch reaches but a probed sample does not has no known placement: its parameters are lifted.
        with requiring(self._model, ()):
            self._probe.look(task, batch)
        while True:
            plan = self._plan(task, batch)
            finite, audit = expected.finite, Audit(self._layout, expected, weights)
            try:
                covered = self._rehearse(plan, task, batch, audit, sink)
            except ChangedInPlace as change:
                if change.module in self._copies:
                    raise
                self._copies.add(change.module)
            except Reached as found:
                if planned := found.names - set(plan.unused):
                    self._lift(plan, planned, str(found))
                self._used |= found.names
            except PlanFailed as refusal:
                self._lift(plan, refusal.names, str(refusal))
            except TrakError:
                raise
            except Exception as error:
                # The model may have failed because a value that all samples share was expanded to one entry per sample.
                given = {name for layer in plan.layers if layer.place == "one" for name in layer.names.values()}
                given |= {
                    name for rerun in plan.reruns if "one" in rerun.outputs.values() for name in rerun.names.values()
                }
                if not given:
                    raise
                self._lift(plan, given, f"{type(error).__name__}: {error}")
            else:
                wrong = audit.wrong() if finite else {}
                if not wrong:
                    return replace(covered, verified=finite)
                _restart(sink)
                some = ", ".join(f"{name} ({how})" for name, how in list(wrong.items())[:5])
                self._lift(plan, set(wrong), f"{some}{' …' if len(wrong) > 5 else ''}")
            # The audit has overwritten the reference.
            expected = reference(self._model, task, batch, self._layout)

    def _rehearse(self, plan: Plan, task: Task, batch: SampleBatch, audit: Audit, sink: Sink | None) -> Covered:
        def both(block: GradientBlock) -> None:
            audit(block)
            if sink is not None:
                sink(block)

        try:
            with (
                Tape(plan, both, batch.size, self._model, self._layout) as tape,
                without_autocast(),
                batch_of(batch.size),
            ):
                output = as_outputs(task.output(self._model, batch.data), batch.size, task)
                require_graph(output, self._model, task)
                path = tape.path(output)
                tape.backward(output)
                return Covered(plan, False, output.detach(), path, frozenset(tape.looped))
        except Exception:
            _restart(sink)
            raise

    def _plan(self, task: Task, batch: SampleBatch) -> Plan:
        while True:
            self._handlers.settle(self._used, self._probe.places)
            layers, rest, misplaced = self._layers()
            reruns: list[Rerun] = []
            if not misplaced:
                reruns, misplaced = self._reruns(task, batch, rest)
            if not misplaced:
                # Experts that no sample has reached yet get the handler to which the other experts were lifted.
                adopted = self._handlers.adopt(self._used, {rerun.name for rerun in reruns if rerun.name})
                if not adopted:
                    break
                self._used |= adopted
                continue
            for location in misplaced:
                self._handlers.lift(location, set(self._probe.places))
        unused = tuple(slot.name for slot in self._layout if slot.name not in self._used)
        return Plan(tuple(layers), tuple(reruns), unused, frozenset(self._copies))

    def _layers(self) -> tuple[list[Layer], dict[str, dict[str, str]], list[Location]]:
        """The layers that use a rule, the parameters of other modules by handler, and the locations that must be lifted."""
        layers: list[Layer] = []
        rest: dict[str, dict[str, str]] = {}
        misplaced: list[Location] = []
        for handler, names in self._handlers.active(self._used, self._probe.places).items():
            module = self._handlers.modules[handler]
            layer, others = layer_of(handler, module, names, self._probe.places[module])
            if layer is not None and not rule_applies(layer):
                misplaced += self._located(handler, layer.names)
            elif layer is not None:
                layers.append(layer)
            if others:
                rest[handler] = others
        return layers, rest, misplaced

    def _reruns(
        self, task: Task, batch: SampleBatch, rest: dict[str, dict[str, str]]
    ) -> tuple[list[Rerun], list[Location]]:
        if not rest:
            return [], []
        modules, places = self._handlers.modules, self._probe.places
        for handler, names in rest.items():
            if any_sharded(modules[handler].parameters()):
                raise UnsupportedModelError(
                    f"parameters {', '.join(names.values())} are sharded over devices, and {handler or 'the model'} "
                    f"({type(modules[handler]).__name__}) has no layer rule and would have to be re-run with unsharded ones. "
                    "Leave them out: parameters=['!NAME']."
                )
        inside = {handler: inner_modules(modules[handler], names, places) for handler, names in rest.items()}
        watched = list(
            {modules[handler] for handler in rest} | {module for inner in inside.values() for module in inner}
        )
        with requiring(self._model, {name for names in rest.values() for name in names.values()}):
            for key, found in dependent(self._model, task, batch, watched).items():
                self._dependent.setdefault(key, set()).update(found)
        reruns: list[Rerun] = []
        misplaced: list[Location] = []
        for handler, names in rest.items():
            module = modules[handler]
            outputs = self._of_dependent(module, "outputs")
            if not all(map(_by_sample, outputs.values())):
                misplaced += self._located(handler, names)
                continue
            inner = []
            for child in () if handler in self._whole else inside[handler]:
                inputs = self._of_dependent(child, "inputs")
                if all(map(_by_sample, inputs.values())):
                    inner.append(Inner(child, inputs, places[child].outputs))
            reruns.append(Rerun(handler, module, names, places[module].inputs, outputs, tuple(inner)))
        return reruns, misplaced

    def _of_dependent(self, module: nn.Module, side: Side) -> dict[int, Where]:
        places: dict[int, Where] = getattr(self._probe.places[module], side)
        return {position: places.get(position, "unknown") for position in self._dependent.get((module, side), set())}

    def _located(self, handler: str, names: Any) -> list[Location]:
        return [place for name in names.values() for place in self._handlers.at(name, handler)]

    def _lift(self, plan: Plan, names: set[str], reason: str) -> None:
        """Lift these parameters; or, if their handler is a re-run module that replays the modules inside it, re-run it with those modules."""
        cut = {rerun.name for rerun in plan.reruns if rerun.inner}
        places = [place for name in names for place in self._handlers.at(name)]
        whole = {place.handler for place in places} & cut
        movable = [place for place in places if place.handler and place.handler not in cut]
        if not whole and not movable:
            raise UnsupportedModelError(
                f"the hooks extractor cannot compute per-sample gradients of {len(names)} parameters of {type(self._model).__name__}: "
                f"{reason}. They are used outside the forward of the modules that contain them, or where samples are mixed. Use "
                "extractor='auto' or 'iterative', or leave them out: parameters=['!NAME']."
            )
        self._whole |= whole
        for place in movable:
            self._handlers.lift(place, set(self._probe.places))


def _by_sample(where: Where) -> bool:
    return where == "one" or isinstance(where, Placement)


def _restart(sink: Sink | None) -> None:
    if sink is not None and (restart := restart_of(sink)):
        restart()
