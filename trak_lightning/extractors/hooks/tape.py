"""Record one forward pass with hooks, and turn its backward pass into gradient blocks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trak_lightning.data.trees import flatten, snapshot
from trak_lightning.errors import TrakError, UnsupportedModelError
from trak_lightning.extractors.hooks.budget import UNLIMITED, Budget
from trak_lightning.extractors.hooks.decisions import Answers
from trak_lightning.extractors.hooks.graph import walk
from trak_lightning.extractors.hooks.placement import Misplaced, Placement, Where, locate
from trak_lightning.extractors.hooks.plan import Inner, Layer, Plan, Rerun
from trak_lightning.extractors.rules import LayerCall
from trak_lightning.extractors.rules.fallback import InnerCall, Leaves, RecordedCall, rerun_gradients
from trak_lightning.extractors.state import kept_grads, parameters_of, requiring
from trak_lightning.gradients import DenseBlock, GradientBlock, OuterProductBlock, ParameterLayout, RowSparseBlock, Sink
from trak_lightning.model.autocast import autocast_state, under_autocast
from trak_lightning.model.dtensor import any_sharded


class PlanFailed(UnsupportedModelError):
    """The gradients of the parameters in `names` cannot be computed by the modules that the plan assigns them to."""

    def __init__(self, names: Iterable[str], reason: str) -> None:
        self.names = set(names)
        super().__init__(reason)


class ChangedInPlace(UnsupportedModelError):
    """An input of `module` was changed in place after the call. The planner tries again with a copy of the input."""

    def __init__(self, module: str) -> None:
        self.module = module
        super().__init__(
            f"the input of module {module!r} is changed in place after the module has used it. Write x = x + y instead of "
            "x += y, and use ReLU(inplace=False)."
        )


class Reached(PlanFailed):
    """The output depends on parameters through operations outside their handlers, which the plan does not cover."""

    def __init__(self, names: Iterable[str]) -> None:
        found = sorted(names)
        super().__init__(found, f"{', '.join(found[:5])} used outside the modules that own them")


@dataclass(frozen=True)
class PassPath:
    """What one forward pass went through: the modules of the plan that were called, the operations that made the output, with how
    many there were of each, and what Python was told where it decides by values of the batch as a whole."""

    called: frozenset[str]
    operations: frozenset[tuple[str, int]]
    answers: tuple[bool, ...] = ()

    @property
    def kind(self) -> "PassPath":
        """The path without counts, which may depend on the length of a sequence."""
        return PassPath(self.called, frozenset((name, 0) for name, _ in self.operations), self.answers)


class _Anchor(torch.autograd.Function):
    """The identity, whose output requires a gradient: lets the backward pass reach the first layer's output although no
    parameter requires one. Returns a copy, so that the model may change it in place."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, torch.zeros(())


class _Together(torch.autograd.Function):
    """The identity on several tensors, whose gradients arrive together."""

    @staticmethod
    def forward(ctx: Any, on_backward: Callable[..., None], *values: Tensor) -> tuple[Tensor, ...]:
        ctx.on_backward = on_backward
        ctx.set_materialize_grads(False)
        return tuple(value.clone() for value in values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.on_backward(grads)
        return None, *grads


class Tape:
    """Hooks on every module that the plan names, for one forward and backward pass.

    While the tape is open, a parameter requires a gradient only outside its handlers. The output then depends on a parameter
    only if the model uses it in a way that the plan does not cover, and the autograd graph shows that for any values. A
    context manager: hooks are removed on exit.
    """

    def __init__(
        self,
        plan: Plan,
        sink: Sink,
        size: int,
        model: nn.Module,
        layout: ParameterLayout,
        budget: Budget = UNLIMITED,
    ) -> None:
        self._budget = budget
        self._plan = plan
        self._sink = sink
        self._size = size
        self._model = model
        self._parameters = len(layout)
        # During a pass, full parameters replace the sharded ones, so only unused parameters can be watched.
        self._sharded = any_sharded(model.parameters())
        watched = plan.unused if self._sharded else tuple(layout.by_name)
        self._watched = parameters_of(model, watched)
        self._inside: dict[str, int] = {}
        self._anchor = torch.zeros((), requires_grad=True)
        self._handles: list[Any] = []
        self._stack = ExitStack()
        self._open: dict[str, list[RecordedCall]] = {}
        self._waiting: list[tuple[Rerun, RecordedCall]] = []
        self._replaying = False
        self._called: set[str] = set()
        self._answers = Answers()
        self.looped: set[str] = set()
        """The parameters whose modules vmap could not re-run."""

    def __enter__(self) -> "Tape":
        self._stack.enter_context(requiring(self._model, self._watched))
        self._stack.enter_context(kept_grads(list(self._watched.values())))
        if not self._sharded:
            for layer in self._plan.layers:
                self._around_handler(layer.module, layer.names.values())
            for rerun in self._plan.reruns:
                self._around_handler(rerun.module, rerun.names.values())
        for layer in self._plan.layers:
            self._handles.append(layer.module.register_forward_hook(self._on_layer(layer), with_kwargs=True))
        for rerun in self._plan.reruns:
            self._handles.append(rerun.module.register_forward_pre_hook(self._before_call(rerun), with_kwargs=True))
            self._handles.append(rerun.module.register_forward_hook(self._after_call(rerun), with_kwargs=True))
        for rerun in self._plan.reruns:
            for inner in rerun.inner:
                before, after = self._around_inner(rerun, inner)
                self._handles.append(inner.module.register_forward_pre_hook(before, with_kwargs=True))
                self._handles.append(inner.module.register_forward_hook(after, with_kwargs=True))
        return self

    def __exit__(self, *exception: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._stack.__exit__(*exception)

    def listening(self) -> AbstractContextManager[Any]:
        """Within this, the forward pass is made."""
        return self._answers if self._plan.decides else nullcontext()

    def path(self, output: Tensor) -> PassPath:
        """The path that a forward pass took.

        Raises:
            Reached: it used parameters outside their handlers.
        """
        operations, leaves = walk(output)
        reached = {name for name, parameter in self._watched.items() if id(parameter) in leaves}
        if reached:
            raise Reached(reached)
        return PassPath(frozenset(self._called), frozenset(operations.items()), tuple(self._answers.values))

    def backward(self, output: Tensor) -> None:
        """Push the blocks of all layers.

        Raises:
            Reached: inside a reentrant checkpoint, a parameter was used outside its handlers.
        """
        # Not autograd.grad, which reentrant checkpointing refuses; only the anchor is a leaf that requires a gradient.
        output.backward(torch.ones_like(output))
        reached = {name for name, parameter in self._watched.items() if parameter.grad is not None}
        if reached:
            raise Reached(reached)
        with requiring(self._model, ()):
            while self._waiting:
                self._rerun(*self._waiting.pop())

    def _around_handler(self, module: nn.Module, planned: Iterable[str]) -> None:
        """Turn off ``requires_grad`` of parameters while their handler runs."""
        names = [name for name in planned if name in self._watched]

        def before(_: nn.Module, args: Any) -> None:
            if self._replaying:  # under vmap, which does not allow changing requires_grad
                return
            for name in names:
                self._inside[name] = self._inside.get(name, 0) + 1
                self._watched[name].requires_grad_(False)

        def after(_: nn.Module, args: Any, output: Any) -> None:
            for name in () if self._replaying else names:
                self._inside[name] -= 1
                if not self._inside[name]:
                    self._watched[name].requires_grad_(True)

        self._handles.append(module.register_forward_pre_hook(before))
        self._handles.append(module.register_forward_hook(after))

    def _on_layer(self, layer: Layer) -> Callable[..., Any]:
        def on_forward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            self._called.add(layer.name)
            if self._idle():
                return output
            if layer.rule.whole_call:
                return self._record_call(layer, args, kwargs, output)
            input = args[0] if args else next(iter(kwargs.values()))
            if layer.place == "one" and self._size > 1:
                output, input = self._over_batch(output), self._over_batch(input)
            output = self._on_graph(output)
            place = layer.place if isinstance(layer.place, Placement) else Placement((0,))
            with self._doing(layer.names.values()):
                place.require(output, self._size, f"module {layer.name!r}")
            kept, version = self._keep(layer.name, input)

            def on_backward(output_grad: Tensor | None) -> None:
                if output_grad is None:  # an output that the task does not use
                    return
                self._require_unchanged(layer.name, [(kept, version)])
                with torch.no_grad(), torch.autocast(output_grad.device.type, enabled=False):
                    with self._doing(layer.names.values()):
                        pair = [place.rows(x, self._size, f"module {layer.name!r}") for x in (kept, output_grad)]
                    self._push(layer, layer.rule.function(layer.module, layer.names, *_of_one_dtype(*pair)))

            output.register_hook(on_backward)
            return output

        return on_forward

    def _record_call(self, layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        leaves, rebuild = flatten((args, kwargs))
        kept = [self._keep(layer.name, leaf) if isinstance(leaf, Tensor) else (leaf, 0) for leaf in leaves]
        autocast = autocast_state(leaves)

        def on_backward(grads: list[Tensor | None]) -> None:
            self._require_unchanged(layer.name, kept)
            given_args, given_kwargs = rebuild([leaf for leaf, _ in kept])
            call = LayerCall(given_args, given_kwargs, grads)
            with torch.no_grad(), under_autocast(autocast):
                self._push(layer, layer.rule.function(layer.module, layer.names, call))

        return self._tap(output, on_backward)

    def _push(self, layer: Layer, blocks: Iterator[GradientBlock]) -> None:
        while True:
            with self._doing(layer.names.values()):
                try:
                    block = next(blocks, None)
                    whole = None if block is None else _by_sample(block, self._size, layer)
                except (Misplaced, TrakError, torch.OutOfMemoryError):
                    raise
                except Exception as error:
                    raise Misplaced(f"module {layer.name!r} ({type(layer.module).__name__}): {error}") from error
            if whole is None:
                return
            del block
            self._sink(whole)
            del whole

    @contextmanager
    def _doing(self, names: Iterable[str]) -> Iterator[None]:
        try:
            yield
        except Misplaced as error:
            raise PlanFailed(names, str(error)) from error

    def _before_call(self, rerun: Rerun) -> Callable[..., Any]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._idle():
                return
            given = self._leaves(rerun, (args, kwargs), rerun.inputs)
            call = RecordedCall(given, [], autocast_state(flatten((args, kwargs))[0]))
            self._open.setdefault(rerun.name, []).append(call)

        return before

    def _after_call(self, rerun: Rerun) -> Callable[..., Any]:
        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            self._called.add(rerun.name)
            if self._idle() or not self._open.get(rerun.name):
                return output
            call = self._open[rerun.name].pop()
            if rerun.inner:
                self._waiting.append((rerun, call))

            def on_backward(grads: list[Tensor | None]) -> None:
                for position, grad in enumerate(grads):
                    if grad is not None:
                        call.output_grads[position] = self._split(rerun, grad, rerun.outputs[position])
                if not rerun.inner:
                    self._rerun(rerun, call)

            return self._tap(output, on_backward, rerun.outputs)

        return after

    def _around_inner(self, rerun: Rerun, inner: Inner) -> tuple[Callable[..., Any], Callable[..., Any]]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._idle() or not self._open.get(rerun.name):
                return None
            call = InnerCall(inner.module)
            frame = self._open[rerun.name][-1]
            frame.entered.append(call)
            if len(frame.entered) > 1:
                return None  # nested in a module whose output is replayed
            frame.inner.append(call)
            leaves, rebuild = flatten((args, kwargs))
            for position, where in inner.inputs.items():
                if isinstance(leaves[position], Tensor):
                    leaf = self._on_graph(self._over_batch(leaves[position]) if where == "one" else leaves[position])
                    # A separate view, so that its gradient is that of this use only.
                    leaves[position] = leaf = leaf.view_as(leaf)
                    leaf.register_hook(self._collect(rerun, call, position, where))
            return rebuild(leaves)

        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if self._idle() or not self._open.get(rerun.name):
                return
            call = self._open[rerun.name][-1].entered.pop()
            call.returned = self._leaves(rerun, output, inner.outputs)

        return before, after

    def _collect(self, rerun: Rerun, call: InnerCall, position: int, where: Where) -> Callable[[Tensor], None]:
        def on_backward(grad: Tensor | None) -> None:
            if grad is not None:
                call.input_grads[position] = self._split(rerun, grad, where)

        return on_backward

    def _split(self, rerun: Rerun, value: Tensor, where: Where) -> Tensor:
        with self._doing(rerun.names.values()):
            place = locate(where, value, self._size)
            if place is None:
                raise Misplaced(
                    f"module {rerun.name!r} takes or returns a value of shape {tuple(value.shape)} that all samples share"
                )
            return place.split(value, self._size, f"module {rerun.name!r}")

    def _leaves(self, rerun: Rerun, tree: Any, places: Mapping[int, Where]) -> Leaves:
        """Copy the leaves of `tree`; split those that hold samples by sample."""
        leaves, rebuild = flatten(tree)
        values, batched = [snapshot(leaf, clone=True) for leaf in leaves], []
        for position, value in enumerate(values):
            if isinstance(value, Tensor):
                place = locate(places.get(position, "unknown"), value, self._size)
                if place is not None:
                    values[position] = self._split(rerun, value, place)
                    batched.append(position)
        return Leaves(values, rebuild, batched)

    def _tap(
        self,
        output: Any,
        on_backward: Callable[[list[Tensor | None]], None],
        places: Mapping[int, Where] | None = None,
    ) -> Any:
        """Put the floating-point tensors of `output`, or those in `places`, on the graph; `on_backward` receives the gradients
        of all leaves at once."""
        leaves, rebuild = flatten(output)
        positions = [
            position
            for position, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and (places is None or position in places)
        ]

        count = len(leaves)  # a closure over the leaves, whose graph holds `spread`, would be a reference cycle

        def spread(grads: tuple[Tensor | None, ...]) -> None:
            found: list[Tensor | None] = [None] * count
            for position, grad in zip(positions, grads, strict=True):
                found[position] = grad
            on_backward(found)

        values = [leaves[position] for position in positions]
        if places is not None:
            values = [
                self._over_batch(value) if places[position] == "one" else value
                for position, value in zip(positions, values, strict=True)
            ]
        if not values:
            return output
        if not any(value.requires_grad for value in values):
            values[0] = self._on_graph(values[0])
        for position, value in zip(positions, _Together.apply(spread, *values), strict=True):
            leaves[position] = value
        return rebuild(leaves)

    def _rerun(self, rerun: Rerun, call: RecordedCall) -> None:
        if not call.output_grads and not any(inner.input_grads for inner in call.inner):
            return
        self._replaying = True
        try:
            with torch.enable_grad(), self._doing(rerun.names.values()):
                share = len(self.looped.union(rerun.names.values())) / self._parameters
                loop = self._budget.allows_loop(share, self._size)
                blocks = list(rerun_gradients(rerun.name, rerun.module, rerun.names, call, self._size, loop=loop))
        finally:
            self._replaying = False
        if call.looped:
            self.looped.update(rerun.names.values())
        with torch.no_grad():
            for block in blocks:
                self._sink(block)

    def _idle(self) -> bool:
        return self._replaying or not torch.is_grad_enabled()

    def _on_graph(self, output: Tensor) -> Tensor:
        if output.requires_grad:
            return output
        anchored: Tensor = _Anchor.apply(output, self._anchor)
        return anchored

    def _over_batch(self, value: Tensor) -> Tensor:
        """Expand a value that all samples share, (1, …), to one entry per sample, so that its gradient is per sample."""
        if self._size > 1 and value.ndim > 1 and value.shape[0] == 1:
            return value.expand(self._size, *value.shape[1:]).clone()
        return value

    def _keep(self, name: str, value: Tensor) -> tuple[Tensor, int]:
        kept = value.detach()
        if name in self._plan.copies:
            kept = kept.clone()
        return kept, kept._version

    def _require_unchanged(self, name: str, kept: list[tuple[Any, int]]) -> None:
        if any(isinstance(value, Tensor) and value._version != version for value, version in kept):
            raise ChangedInPlace(name)


def _by_sample(block: GradientBlock, size: int, layer: Layer) -> GradientBlock:
    """Convert a block with several entries per sample, first dimension (B · entries), to one with first dimension B."""
    tensors = {key: value for key, value in vars(block).items() if isinstance(value, Tensor)}
    length = len(next(iter(tensors.values())))
    if length == size:
        return block
    if length % size:
        raise Misplaced(f"module {layer.name!r} has {length} entries in a batch of {size} samples")
    entries = length // size
    if layer.rule.whole_call and isinstance(layer.place, Placement) and not layer.place.sample_major:
        order = torch.arange(length).view(entries, size).T.flatten()
        tensors = {key: value[order.to(value.device)] for key, value in tensors.items()}
        block = replace(block, **tensors)  # type: ignore[arg-type]
    parts = {key: value.unflatten(0, (size, entries)) for key, value in tensors.items()}
    if isinstance(block, (OuterProductBlock, RowSparseBlock)):
        return replace(block, **{key: part.flatten(1, 2) for key, part in parts.items()})
    # One sample at a time, since the dense gradients of all its entries need the most memory.
    samples = [
        block.take(slice(start, start + entries)).dense().sum(0, keepdim=True) for start in range(0, length, entries)
    ]
    return DenseBlock(block.name, torch.cat(samples))


def _of_one_dtype(input: Tensor, output_grad: Tensor) -> tuple[Tensor, Tensor]:
    """Convert both to float32, or to float64 if one has it, so that 16-bit values from autocast are summed in 32 bits."""
    dtype = torch.promote_types(output_grad.dtype, torch.float32)
    if not input.is_floating_point():
        return input, output_grad.to(dtype)
    dtype = torch.promote_types(dtype, input.dtype)
    return input.to(dtype), output_grad.to(dtype)
