"""One forward and one backward pass for the whole batch; per-sample gradients are made layer by layer, as the backward
pass arrives there."""

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from trak_lightning.data.samples import batch_size
from trak_lightning.errors import UnsupportedModelError
from trak_lightning.extractors.audit import require_graph
from trak_lightning.extractors.base import GradientExtractor, RuleUse
from trak_lightning.extractors.hooks.graph import Operations, operations
from trak_lightning.extractors.hooks.plan import Plan
from trak_lightning.extractors.hooks.planner import Planner
from trak_lightning.extractors.hooks.tape import Tape
from trak_lightning.extractors.state import requiring
from trak_lightning.gradients import ParameterLayout, Sink
from trak_lightning.model.dtensor import any_sharded
from trak_lightning.tasks.base import Task

_PATHS = 16
"""How many ways through a model are rehearsed at most."""


class Hooks(GradientExtractor):
    """Exact per-sample gradients at about the cost of a training step.

    Forward hooks record the input of every layer that owns attributed parameters; the backward pass computes gradients of
    layer outputs only, and at each layer a rule turns input and output gradient into per-sample parameter gradients, which
    go to the sink and are freed. A module without a rule, or with parameters that are used in other ways, is re-run alone
    under vmap, without the modules inside it.

    The first batch is rehearsed before anything goes to the sink: it is seen where every module holds the samples, and
    the sum of all blocks, with a different weight for each sample, is compared with the ordinary gradient, parameter by
    parameter. A parameter that cannot be had is refused by name and never dropped. A later batch in which a parameter is
    used or a module is called for the first time, or whose output is made by other operations, is rehearsed too; the
    last only so often, since where code runs in loops every length makes its own.

    Memory: the activations, as in training, and the block of one layer.
    """

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type["Hooks"], tuple[()]]:
        return Hooks, ()  # a rank that is spawned finds out for itself what is known of the model

    def extract(self, model: nn.Module, task: Task, batch: Any, layout: ParameterLayout, sink: Sink) -> Tensor:
        size = batch_size(batch)
        sharded, known = any_sharded(model.parameters()), self._known.get(model)
        if known is None or known.layout != layout.fingerprint or (known.size_one and size > 1):
            known = self._known[model] = self._rehearsed(model, task, batch, layout, size)
        for rehearsed in (False, True):
            with requiring(model, known.plan.unused), Tape(known.plan, sink, size) as tape:
                output = task.output(model, batch)
                require_graph(output, model, task)
                if rehearsed or not known.is_new(tape.called, output, model):
                    tape.backward(output)
                    return output.detach()
            if sharded:
                raise UnsupportedModelError(
                    "a batch uses the model in a way that earlier ones did not, and parameters are sharded over devices, so "
                    "that it cannot be rehearsed without the other ranks. Use a model of one path, or ddp."
                )
            known.rehearse(task, batch, size)
        raise AssertionError("unreachable")

    def account(self, model: nn.Module, task: Task, batch: Any, layout: ParameterLayout) -> list[RuleUse]:
        known = self._known[model] = self._rehearsed(model, task, batch, layout, batch_size(batch))
        return known.plan.account(layout)

    def _rehearsed(self, model: nn.Module, task: Task, batch: Any, layout: ParameterLayout, size: int) -> "_Known":
        known = _Known(layout.fingerprint, size == 1, Planner(model, layout))
        known.rehearse(task, batch, size)
        return known


@dataclass
class _Known:
    """What is known of a model. A batch of one says nothing of which sample is where: it does not count for larger ones."""

    layout: str
    size_one: bool
    planner: Planner
    plan: Plan = field(init=False)
    called: set[str] = field(default_factory=set)
    paths: set[Operations] = field(default_factory=set)

    def rehearse(self, task: Task, batch: Any, size: int) -> None:
        self.plan, called, paths = self.planner.cover(task, batch, size)
        self.called |= called
        self.paths |= paths

    def is_new(self, called: set[str], output: Tensor, model: nn.Module) -> bool:
        """Whether a batch uses the model in a way that was not rehearsed."""
        if not called <= self.called or _reached(output, model, self.plan.unused):
            return True
        return len(self.paths) < _PATHS and operations(output) not in self.paths


def _reached(output: Tensor, model: nn.Module, names: tuple[str, ...]) -> bool:
    """Whether `output` depends on one of these parameters."""
    if not names:
        return False
    parameters = [model.get_parameter(name) for name in names]
    try:
        grads = torch.autograd.grad(output.sum(), parameters, retain_graph=True, allow_unused=True)
    except RuntimeError:  # reentrant checkpointing lies on the way, so there is one
        return True
    return any(grad is not None for grad in grads)
