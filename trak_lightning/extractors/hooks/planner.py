"""Make a plan, and rehearse it on a batch before any block is emitted."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import UnsupportedModelError
from trak_lightning.extractors.audit import (
    Audit,
    Reference,
    Watch,
    added,
    as_outputs,
    audit_coefficients,
    halves,
    reference,
    require_graph,
)
from trak_lightning.extractors.hooks.budget import UNLIMITED, Budget
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
from trak_lightning.extractors.hooks.probe import Look, Probe, Shapes, Side
from trak_lightning.extractors.hooks.tape import ChangedInPlace, PassPath, PlanFailed, Reached, Tape
from trak_lightning.extractors.rules.fallback import TooManyPasses
from trak_lightning.extractors.state import parameters_of, requiring
from trak_lightning.gradients import GradientBlock, ParameterLayout, Sink, halves_of, restart_of
from trak_lightning.model.autocast import without_autocast
from trak_lightning.model.dtensor import any_sharded
from trak_lightning.tasks.base import Task, batch_of

_LOOKED_AT_IN_HALVES = 16
"""From this number of samples on, sizes and orders that depend on content show in two halves of a batch, drawn at random, as they do
in the whole. In fewer, all samples of each half may happen to be alike."""


_DECIDES = (
    "Python reads a number that is computed from all samples of the batch, and may be another one for a sample alone, in {}. Samples "
    "then depend on their batch if the model decides by it, such as when to leave a loop. If it is only printed or logged, leave that out. "
    "Use extractor='auto' or 'iterative'."
)


@dataclass(frozen=True)
class Covered:
    """A plan, and the rehearsal of it. `verified`: whether the gradients were compared with those of autograd, which they cannot
    be unless they are finite."""

    plan: Plan
    verified: bool
    output: Tensor
    path: PassPath
    looped: frozenset[str]


class Planner:
    """Plan for one model and layout; remember what earlier batches have shown.

    Every parameter is first assigned to the rule of the layer that owns it. Where that cannot work (the layer is never called,
    returns a value that all samples share, or an audit finds its gradients wrong), the parameter is lifted to the enclosing
    module, which is re-run, and so on up to the model itself.
    """

    def __init__(self, model: nn.Module, layout: ParameterLayout, budget: Budget = UNLIMITED) -> None:
        self._model = model
        self._layout = layout
        self._budget = budget
        self._handlers = Handlers(model, layout)
        self._probe = Probe(model)
        self._used: set[str] = set()
        self._copies: set[str] = set()
        self._whole: set[str] = set()
        self._looks = 0
        self._decides = False
        self._dependent: dict[tuple[nn.Module, Side], set[int]] = {}
        self._seen: Shapes | None = None
        """The pass that shows what depends on which parameters, if it was made."""

    def cover(self, task: Task, batch: SampleBatch, sink: Sink | None = None) -> Covered:
        """Make a plan for `batch`, and rehearse it. If `sink` is given, which has a method ``restart``, it receives the blocks of
        the rehearsal that succeeds.

        Raises:
            UnsupportedModelError: no plan gives correct gradients. Names the parameters.
        """
        expected, look = self._in_halves(task, batch, sink)
        whole = expected is None
        expected = expected or reference(self._model, task, batch, self._layout)
        self._used |= {name for name, grad in expected.grads.items() if grad is not None}
        # A module that the batch reaches but a probed sample does not has no known placement: its parameters are lifted.
        with self._probing():
            seen = self._probe.look(task, batch, look)
        if look is not None:
            self._decides |= look.decides
            if look.doubtful:
                raise UnsupportedModelError(_DECIDES.format(look.doubtful[0]))
        few = look.twins if look is not None and look.alike and not whole else batch
        finite = expected.finite
        shown = (look is None or few is not batch) and not any_sharded(self._model.parameters())
        self._seen = seen if shown else None
        while True:
            plan = self._plan(task, few)
            # Against two halves of the batch, and with what two samples show, the verdict is not the last one.
            audit = Audit(self._layout, expected, audit_coefficients(batch.size), measure=whole)
            again = False
            try:
                if few is not batch and _expanded(plan):  # which many models do not support, as two samples show
                    self._rehearse(plan, task, few)
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
            except TooManyPasses:
                raise
            except Exception as error:
                # Model and task did not fail before a value that all samples share was expanded to one entry per sample.
                given = _expanded(plan)
                if not given:
                    raise
                self._lift(plan, given, f"{type(error).__name__}: {error}")
            else:
                wrong = audit.wrong() if finite else {}
                if not wrong:
                    return replace(covered, verified=finite)
                _restart(sink)
                again = True
                if whole:
                    some = ", ".join(f"{name} ({how})" for name, how in list(wrong.items())[:5])
                    self._lift(plan, set(wrong), f"{some}{' …' if len(wrong) > 5 else ''}")
            if again or audit.begun:  # which has overwritten the reference
                if few is not batch:
                    few, self._seen = batch, None
                whole = True
                expected = reference(self._model, task, batch, self._layout)
                finite = expected.finite

    def _in_halves(self, task: Task, batch: SampleBatch, sink: Sink | None) -> tuple[Reference | None, Look | None]:
        """Differentiate a batch in two halves, drawn at random, while looking at where they hold the samples. The reference is None
        if the batch has to be differentiated as a whole."""
        if batch.size == 1:
            return None, None
        if any_sharded(self._model.parameters()):
            return None, self._whole_look(task, batch)
        self._looks += 1
        parts, weights = halves(batch.size, seed=self._looks), audit_coefficients(batch.size)
        try:
            each = [batch.fetch(part) for part in parts]
            look = self._probe.begin(batch, each if batch.size >= _LOOKED_AT_IN_HALVES else [batch])
        except Exception:  # refused with its reason if the whole fails, too
            return None, self._whole_look(task, batch)
        self._require_few_passes(task, look, batch.size)
        in_halves = len(look.parts) > 1
        watches: list[Watch] = [seen.watching for seen in look.parts] if in_halves else [nullcontext] * 2
        try:
            found = [
                reference(self._model, task, half, self._layout, weights[part], watch)
                for half, part, watch in zip(each, parts, watches, strict=True)
            ]
        except Exception:
            return None, self._whole_look(task, batch)
        total = added(found)
        outputs = torch.empty_like(total.output)
        outputs[[*parts[0], *parts[1]]] = total.output
        if (tell := halves_of(sink)) is not None:
            tell(outputs)
        return total, look if in_halves else self._whole_look(task, batch, look)

    def _whole_look(self, task: Task, batch: SampleBatch, look: Look | None = None) -> Look:
        look = look or self._probe.begin(batch, [batch])
        with self._probing():
            look.parts[0].see(task, batch)
        return look

    def _require_few_passes(self, task: Task, look: Look, size: int) -> None:
        """Refuse a model most of whose parameters are in modules that get what was selected by its values, such as the tokens of an expert,
        before its batch is differentiated: what selects would have to be re-run, and vmap cannot.

        Raises:
            TooManyPasses: as `cover` would raise later.
        """
        if self._budget is UNLIMITED:
            return
        try:
            with self._probing():
                two = look.see_twins(task)
        except Exception:  # refused with its reason if the whole fails, too
            return
        selected, used = two.used(two.selected), two.used(self._model.modules())
        if selected and not self._budget.allows_loop(selected / used, size):
            raise TooManyPasses(
                f"{selected} of {used} parameters that a sample uses are in modules that get entries selected by their values, and vmap "
                "cannot re-run what selects them"
            )

    @contextmanager
    def _probing(self) -> Iterator[None]:
        """With a graph, so that operations can be compared with those of a reference; but the hooks of sharded modules would expect a
        backward pass."""
        sharded = any_sharded(self._model.parameters())
        with requiring(self._model, () if sharded else self._layout.by_name), torch.set_grad_enabled(not sharded):
            yield

    def _rehearse(
        self, plan: Plan, task: Task, batch: SampleBatch, audit: Audit | None = None, sink: Sink | None = None
    ) -> Covered:
        """Follow a plan; without an audit, in the forward pass only."""

        def both(block: GradientBlock) -> None:
            if audit is not None:
                audit(block)
            if sink is not None:
                sink(block)

        try:
            with (
                Tape(plan, both, batch.size, self._model, self._layout, self._budget) as tape,
                without_autocast(),
                batch_of(batch.size),
            ):
                with tape.listening():
                    output = task.output(self._model, batch.data)
                output = as_outputs(output, batch.size, task)
                require_graph(output, self._model, task)
                path = tape.path(output)
                if audit is not None:
                    tape.backward(output)
                return Covered(plan, False, output.detach(), path, frozenset(tape.looped))
        except Exception:
            _restart(sink)
            raise

    def _plan(self, task: Task, few: SampleBatch) -> Plan:
        """Plan, with a pass of a `few` samples."""
        while True:
            self._handlers.settle(self._used, self._probe.places)
            layers, rest, misplaced = self._layers()
            reruns: list[Rerun] = []
            if not misplaced:
                reruns, misplaced = self._reruns(task, few, rest)
            if not misplaced:
                # Experts that no sample has reached yet get the handler to which the other experts were lifted.
                adopted = self._handlers.adopt(self._used, {rerun.name for rerun in reruns if rerun.name})
                if not adopted and not self._join(reruns):
                    break
                self._used |= adopted
                continue
            for location in misplaced:
                self._handlers.lift(location, set(self._probe.places))
        unused = tuple(slot.name for slot in self._layout if slot.name not in self._used)
        return Plan(tuple(layers), tuple(reruns), unused, frozenset(self._copies), self._decides)

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
        self, task: Task, few: SampleBatch, rest: dict[str, dict[str, str]]
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
        self._find_dependent(task, few, {name for names in rest.values() for name in names.values()})
        reruns: list[Rerun] = []
        misplaced: list[Location] = []
        for handler, names in rest.items():
            module = modules[handler]
            outputs = self._of_dependent(module, "outputs")
            if not all(map(_by_sample, outputs.values())):
                misplaced += self._located(handler, names)
                continue
            children = [] if handler in self._whole else inner_modules(module, names, places, self._replayable)
            inner = [Inner(child, self._of_dependent(child, "inputs"), places[child].outputs) for child in children]
            reruns.append(Rerun(handler, module, names, places[module].inputs, outputs, tuple(inner)))
        return reruns, misplaced

    def _find_dependent(self, task: Task, few: SampleBatch, names: set[str]) -> None:
        """Find what depends on these parameters."""
        seen = self._seen
        if seen is None:
            sharded = any_sharded(
                self._model.parameters()
            )  # whose hooks would expect a backward pass if they required a gradient
            with requiring(self._model, names if sharded else self._layout.by_name):
                seen = self._probe.trace(task, few)
            self._seen = None if sharded else seen
        for key, found in seen.dependent(parameters_of(self._model, names).values()).items():
            self._dependent.setdefault(key, set()).update(found)

    def _replayable(self, module: nn.Module, deep: bool) -> bool:
        """Whether the gradient of each sample is known of all arguments that depend on the re-run parameters. Where a part of a module
        is replayed and the rest of it is not, a value that all samples share is not expanded, since the rest may expand it itself."""
        inputs = self._of_dependent(module, "inputs").values()
        return all(isinstance(where, Placement) if deep else _by_sample(where) for where in inputs)

    def _join(self, reruns: list[Rerun]) -> bool:
        """Let a module that is run again anyway, inside another one that is, be run again only once, unless the gradients of their parameters
        would take more memory together than those of the largest parameter."""
        largest = max(slot.numel for slot in self._layout)
        for outer in sorted(reruns, key=lambda rerun: len(rerun.name)):
            replayed = {part for inner in outer.inner for part in inner.module.modules()}
            path = f"{outer.name}." if outer.name else ""
            inside = [
                rerun
                for rerun in reruns
                if rerun is not outer and rerun.name.startswith(path) and rerun.module not in replayed
            ]
            names = {name for rerun in (outer, *inside) for name in rerun.names.values()}
            if inside and sum(self._layout.by_name[name].numel for name in names) <= largest:
                for place in (place for rerun in inside for place in self._located(rerun.name, rerun.names)):
                    # As if it were its own, so that it does not adopt all unused parameters inside it.
                    place.handler, place.lifted = outer.name, False
                return True
        return False

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
                f"{reason.rstrip('.')}. They are used outside the forward of the modules that contain them, or where samples have no rows of their own, "
                "such as before the nodes of each graph are summed. Use "
                "extractor='auto' or 'iterative', or leave them out: parameters=['!NAME']."
            )
        self._whole |= whole
        for place in movable:
            self._handlers.lift(place, set(self._probe.places))


def _expanded(plan: Plan) -> set[str]:
    """The parameters in modules that return a value that all samples share, which a tape expands to one entry per sample."""
    given = {name for layer in plan.layers if layer.place == "one" for name in layer.names.values()}
    reruns = [rerun for rerun in plan.reruns if "one" in rerun.outputs.values()]
    return given | {name for rerun in reruns for name in rerun.names.values()}


def _by_sample(where: Where) -> bool:
    return where == "one" or isinstance(where, Placement)


def _restart(sink: Sink | None) -> None:
    if sink is not None and (restart := restart_of(sink)):
        restart()
