"""The extractor ``hooks``: record layer inputs in the forward pass, and form per-sample gradients during the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import TrakError, UnsupportedModelError, first_line
from trak_lightning.extractors.audit import as_outputs, require_graph
from trak_lightning.extractors.base import GradientExtractor, RuleUse
from trak_lightning.extractors.hooks.budget import UNLIMITED, Deferred
from trak_lightning.extractors.hooks.plan import Plan
from trak_lightning.extractors.hooks.planner import Covered, Planner
from trak_lightning.extractors.hooks.tape import PassPath, PlanFailed, Reached, Tape
from trak_lightning.extractors.state import out_of_memory
from trak_lightning.gradients import ParameterLayout, Sink, restart_of
from trak_lightning.model.autocast import is_cast
from trak_lightning.model.dtensor import any_sharded
from trak_lightning.model.quantized import require_rows_apart
from trak_lightning.tasks.base import Task, batch_of

_VARIANTS = 8
"""How many counts of the same operations are verified before only the 16th, 32nd, 64th … are."""


class Hooks(GradientExtractor):
    """Exact per-sample gradients at about the cost of a training step.

    Forward hooks record the input of every layer that owns attributed parameters; the backward pass computes gradients of
    layer outputs only, and at each layer a rule turns input and output gradient into per-sample parameter gradients, which
    go to the sink and are freed. A module without a rule, or with parameters that are used in other ways, is re-run
    under vmap; the outputs of the modules inside it are replayed.

    Every kind of batch is rehearsed before its first block goes to the sink, or while its blocks go to a sink that can discard
    them (``restart``): batches of two and three samples show which dimensions hold the samples in every module, and the sum of
    all blocks, with a different weight for each sample, is compared with the ordinary gradient, parameter by parameter. A
    parameter whose gradient cannot be computed is named in an error, never skipped. A kind is the set of modules that ran, the
    operations that made the output, and the structure of the batch.

    Memory: the activations, as in training, and the block of one layer.
    """

    def __init__(self) -> None:
        self.budget = UNLIMITED
        self._known: WeakKeyDictionary[nn.Module, dict[bool, _Known]] = WeakKeyDictionary()
        self._variants = 0
        self.rehearsals = 0
        """How many kinds of batches were rehearsed."""

    def __reduce__(self) -> tuple[type["Hooks"], tuple[()]]:
        return Hooks, ()  # a spawned rank starts without knowledge of the model

    @property
    def kinds(self) -> int:
        return self.rehearsals + self._variants

    def extract(self, model: nn.Module, task: Task, batch: SampleBatch, layout: ParameterLayout, sink: Sink) -> Tensor:
        if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
            raise UnsupportedModelError(
                f"{type(model).__name__} has TorchScript modules, which call no hooks. Use extractor='auto' or 'iterative', or the "
                "original modules instead of the scripted ones."
            )
        if batch.size > 1:
            require_rows_apart(model)
        if any_sharded(model.parameters()) and batch.size < (full := self._full_size(model)):
            # One rank cannot try out a batch of another size without the others: fill it up with copies of its first sample.
            filled = batch.fetch([*range(batch.size), *[0] * (full - batch.size)])
            return self.extract(model, task, filled, layout, _first(batch.size, sink))[: batch.size]
        known = self._of(model, batch, layout)
        if known.plan is not None:
            output = self._planned(known, model, task, batch, layout, sink, rehearsed=None)
            if output is not None:
                return output
            if any_sharded(model.parameters()):
                raise UnsupportedModelError(
                    "a batch runs other modules or operations than earlier ones, and the hooks extractor cannot check it because "
                    "parameters are sharded over devices. Use the strategy ddp, or a model whose path does not depend on the data."
                )
        if not self.budget.allows_plan(model, batch.size):
            raise Deferred("a batch of a new kind is not planned for now")
        if restart_of(sink) is not None and not is_cast():  # a rehearsal is without autocast
            return self._rehearse(known, task, batch, sink).output
        rehearsed = self._rehearse(known, task, batch).verified
        output = self._planned(known, model, task, batch, layout, sink, rehearsed=rehearsed)
        assert output is not None
        return output

    def _planned(
        self,
        known: "_Known",
        model: nn.Module,
        task: Task,
        batch: SampleBatch,
        layout: ParameterLayout,
        sink: Sink,
        *,
        rehearsed: bool | None,
    ) -> Tensor | None:
        """Follow the plan; return None if the batch is of an unknown kind. `rehearsed` says whether a rehearsal of this very batch
        was verified, None if there was none."""
        assert known.plan is not None
        with Tape(known.plan, sink, batch.size, model, layout, self.budget) as tape, batch_of(batch.size):
            try:
                with _explained(), tape.listening():
                    output = task.output(model, batch.data)
            except PlanFailed:
                if rehearsed is not None:
                    raise
                return None
            output = as_outputs(output, batch.size, task)
            require_graph(output, model, task)
            if rehearsed is None:
                path = known.seen(tape, output, batch)
                if path is None:
                    return None
                self._variants += known.is_variant(path)
            elif rehearsed:
                known.learn(tape.path(output), batch)
            tape.backward(output)
            known.looped |= tape.looped
            return output.detach()

    def looped(self, model: nn.Module) -> float:
        """The share of the parameters that are computed by re-running modules one sample after the other."""
        known = self._known.get(model, {}).get(False)
        return len(known.looped) / known.parameters if known is not None else 0.0

    def account(self, model: nn.Module, task: Task, batch: SampleBatch, layout: ParameterLayout) -> list[RuleUse]:
        known = self._of(model, batch, layout)
        plan = self._rehearse(known, task, batch).plan if known.plan is None else known.plan
        return plan.account(layout)

    def audits(self, model: nn.Module, batch: SampleBatch) -> bool:
        known = self._known.get(model, {}).get(batch.size == 1)
        return known is None or batch.structure not in {structure for _, structure in known.kinds}

    def _full_size(self, model: nn.Module) -> int:
        """The number of samples of the largest batch that was rehearsed; 0 if none was."""
        return max((known.size for known in self._known.get(model, {}).values()), default=0)

    def _of(self, model: nn.Module, batch: SampleBatch, layout: ParameterLayout) -> "_Known":
        """What is known of a model. Batches of one are tracked separately, since they do not show which dimensions hold the
        samples."""
        known = self._known.setdefault(model, {}).get(batch.size == 1)
        if known is not None and known.layout == layout.fingerprint:
            return known
        return _Known(layout.fingerprint, len(layout.by_name), model, Planner(model, layout, self.budget))

    def _rehearse(self, known: "_Known", task: Task, batch: SampleBatch, sink: Sink | None = None) -> Covered:
        """Plan for a batch, and remember its kind if the rehearsal was verified and its blocks went to the `sink`."""
        with _explained():
            covered = known.planner.cover(task, batch, sink)
        known.plan = covered.plan
        if sink is not None:
            known.looped |= covered.looped
            if covered.verified:
                known.learn(covered.path, batch)
        known.size = max(known.size, batch.size)
        self._known.setdefault(known.model, {})[batch.size == 1] = known
        self.rehearsals += 1
        return covered


@dataclass
class _Known:
    layout: str
    parameters: int
    model: nn.Module
    planner: Planner
    plan: Plan | None = None
    size: int = 0
    kinds: set[tuple[PassPath, Any]] = field(default_factory=set)
    looped: set[str] = field(default_factory=set)
    counts: set[PassPath] = field(default_factory=set)

    def learn(self, path: PassPath, batch: SampleBatch) -> None:
        """Note the kind of a batch that was rehearsed."""
        self.kinds.add((path.kind, batch.structure))
        self.counts.add(path)

    def seen(self, tape: Tape, output: Tensor, batch: SampleBatch) -> PassPath | None:
        """The path of a batch of whose kind one was rehearsed before; None if none was."""
        try:
            path = tape.path(output)
        except Reached:
            return None
        return path if (path.kind, batch.structure) in self.kinds else None

    def is_variant(self, path: PassPath) -> bool:
        """Whether the same operations were never before counted like this: a branch was taken, or sequences have another length.
        There may be many such counts, of which the first few and then ever fewer are worth a verification."""
        if path in self.counts:
            return False
        self.counts.add(path)
        return len(self.counts) <= _VARIANTS or len(self.counts).bit_count() == 1


def _first(count: int, sink: Sink) -> Sink:
    """A sink that passes on the first `count` samples of each block."""
    return lambda block: sink(block.take(slice(0, count)))


@contextmanager
def _explained() -> Iterator[None]:
    """Convert an error during a rehearsal, or in the user's code under hooks.

    Raises:
        UnsupportedModelError: instead of any error that is neither a `TrakError` nor a lack of memory.
    """
    try:
        yield
    except TrakError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise UnsupportedModelError(
            f"the hooks extractor cannot follow the model: {type(error).__name__}: {first_line(error)} Use extractor='auto' or 'iterative'."
        ) from error
