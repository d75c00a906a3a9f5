"""Any module: re-run it from its recorded arguments, and differentiate its outputs with respect to its parameters.

Only the module's own code runs again. Each module inside it is replaced by a function that returns the recorded output,
and the gradients of that module's arguments are pulled back along with those of the outer module's output.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp

from trak_lightning.data.samples import over_samples
from trak_lightning.data.trees import Rebuild, flatten, snapshot
from trak_lightning.errors import UnsupportedModelError, first_line
from trak_lightning.extractors.hooks.placement import Misplaced
from trak_lightning.extractors.rules.registry import Names
from trak_lightning.extractors.state import without_assigned_data
from trak_lightning.gradients import DenseBlock, GradientBlock
from trak_lightning.model.autocast import AutocastState, under_autocast


@dataclass
class Leaves:
    """The leaves of arguments or of an output. Those in `batched` are (B, *shape in a batch of one)."""

    values: list[Any]
    rebuild: Rebuild
    batched: list[int]


@dataclass
class InnerCall:
    """One call of a module inside the re-run one: its output, and the gradients of its arguments, by position in the
    flattened arguments, (B, *shape in a batch of one)."""

    module: nn.Module
    returned: Leaves | None = None
    input_grads: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class RecordedCall:
    """One call of a module in the forward pass; `output_grads` have the form of `InnerCall.input_grads`."""

    given: Leaves
    inner: list[InnerCall]
    autocast: AutocastState
    output_grads: dict[int, Tensor] = field(default_factory=dict)
    entered: list[InnerCall] = field(default_factory=list)
    """Calls of modules inside that have not returned yet."""
    looped: bool = False
    """Whether vmap could not re-run it, so that samples were re-run one after the other."""


class TooManyPasses(UnsupportedModelError):
    """A module can be re-run only one sample after the other, which takes more passes than differentiating the samples one by one."""


def rerun_gradients(
    name: str, module: nn.Module, names: Names, call: RecordedCall, size: int, *, loop: bool = True
) -> Iterator[GradientBlock]:
    """Exact per-sample gradients of the parameters in `names`; under vmap where possible, else sample by sample if `loop`.
    `size` is B.

    Raises:
        Misplaced: the module cannot be re-run on single samples.
        TooManyPasses: vmap cannot re-run it.
    """
    parameters = {key: module.get_parameter(key).detach() for key in names}
    replayed = [inner for inner in call.inner if inner.returned is not None]
    leaves = [call.given, *(inner.returned for inner in replayed if inner.returned is not None)]
    samples = tuple(tuple(part.values[position] for position in part.batched) for part in leaves)
    grads = (
        tuple(tuple(inner.input_grads.values()) for inner in replayed),
        tuple(call.output_grads.values()),
    )

    def pull_back(
        sample: tuple[tuple[Tensor, ...], ...], cotangents: tuple[Any, tuple[Tensor, ...]]
    ) -> dict[str, Tensor]:
        given, *returned = (_with(part, values) for part, values in zip(leaves, sample, strict=True))

        def forward(own: dict[str, Tensor]) -> tuple[Any, tuple[Tensor, ...]]:
            seen: list[tuple[Tensor, ...]] = []
            with _replayed(replayed, returned, seen):
                # Fresh arguments for each call, since the module may change them: a key-value cache grows.
                args, kwargs = snapshot_arguments(given)
                output = flatten(functional_call(module, own, args, kwargs, tie_weights=False))[0]
            return tuple(seen), tuple(output[position] for position in call.output_grads)

        with under_autocast(call.autocast):
            gradients: dict[str, Tensor] = vjp(forward, parameters)[1](cotangents)[0]
        return gradients

    try:
        with _kept_buffers(module), without_assigned_data():  # what is assigned under vmap cannot be read outside
            stacked = over_samples(pull_back, samples, grads)
    except Exception as error:
        # vmap fails on control flow that depends on values, and on operators without a batching rule; a loop does not.
        call.looped = True
        if not loop:
            raise TooManyPasses(
                f"{name or 'the model'} ({type(module).__name__}) holds most of the parameters, and vmap cannot re-run it: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
        try:
            with without_assigned_data():
                each = [pull_back(*_take((samples, grads), sample)) for sample in range(size)]
        except Exception as error:
            raise Misplaced(
                f"{name or 'the model'} ({type(module).__name__}) cannot be re-run on single samples: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
        stacked = {key: torch.stack([gradients[key] for gradients in each]) for key in parameters}
    for key, grad in stacked.items():
        yield DenseBlock(names[key], grad)


def snapshot_arguments(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    leaves, rebuild = flatten(given)
    args, kwargs = rebuild([leaf if isinstance(leaf, Tensor) else snapshot(leaf) for leaf in leaves])
    return args, kwargs


def _with(leaves: Leaves, values: Sequence[Tensor]) -> Any:
    all_values = list(leaves.values)
    for position, value in zip(leaves.batched, values, strict=True):
        all_values[position] = value
    return leaves.rebuild(all_values)


def _take(tree: Any, sample: int) -> Any:
    return tuple(_take(part, sample) for part in tree) if isinstance(tree, tuple) else tree[sample]


@contextmanager
def _replayed(calls: list[InnerCall], returned: list[Any], seen: list[tuple[Tensor, ...]]) -> Iterator[None]:
    """Make modules inside return their recorded outputs, in order of their calls; collect their arguments in `seen`."""
    queues: dict[nn.Module, list[int]] = {}
    for position, call in enumerate(calls):
        queues.setdefault(call.module, []).append(position)

    def stand_in(queue: list[int]) -> Callable[..., Any]:
        rest = list(queue)

        def forward(*args: Any, **kwargs: Any) -> Any:
            position = rest.pop(0)
            arguments = flatten((args, kwargs))[0]
            seen.append(tuple(arguments[place] for place in calls[position].input_grads))
            return returned[position]

        return forward

    with ExitStack() as stack:
        for module, queue in queues.items():
            stack.enter_context(_forward(module, stand_in(queue)))
        yield


@contextmanager
def _kept_buffers(module: nn.Module) -> Iterator[None]:
    before = [(each, dict(each._buffers)) for each in module.modules() if each._buffers]
    try:
        yield
    finally:
        for each, buffers in before:
            each._buffers.update(buffers)


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
