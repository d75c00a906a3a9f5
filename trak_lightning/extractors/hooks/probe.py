"""Run a model on batches of known size to learn which modules are called, and which dimensions of their arguments and
outputs hold the samples."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Size, Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from trak_lightning.data.samples import SampleBatch
from trak_lightning.data.trees import deep_leaves, flatten
from trak_lightning.extractors.hooks.content import ContentSizes
from trak_lightning.extractors.hooks.placement import Placement, Where, common, infer
from trak_lightning.extractors.rules import find_rule
from trak_lightning.model.autocast import without_autocast
from trak_lightning.tasks.base import Task, batch_of

Side = Literal["inputs", "outputs"]

_WORDS = (bool, str, bytes, type(None))
"""No size is computed from values of these types."""


@dataclass
class Places:
    """Which dimensions of the arguments and outputs of one module hold the samples, by position in the flattened tree."""

    inputs: dict[int, Where] = field(default_factory=dict)
    outputs: dict[int, Where] = field(default_factory=dict)


class Probe:
    """Accumulate what is known of the modules of one model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.places: dict[nn.Module, Places] = {}

    def look(self, task: Task, batch: SampleBatch) -> None:
        """Run the model on two and on three copies of one sample to find the dimensions that hold the samples; then on the batch
        itself, where sizes and orders may depend on the content of the samples."""
        if batch.size == 1:
            self._merge(_places_of_one(self._pass(task, batch)))
            return
        twins, triplets = batch.fetch([0, 0]), batch.fetch([0, 0, 0])
        packed, unknown = _packed(twins, triplets, batch)
        two, three, all_samples = (
            self._pass(task, *each, unknown) for each in zip((twins, triplets, batch), packed, strict=True)
        )
        fresh = _all_places(two, three)
        if any(_is_flattened(where) for places in fresh.values() for where in _all(places)):
            self._order(task, batch, fresh)
        self._merge(fresh)
        self._distrust(all_samples)

    def _distrust(self, seen: "_Shapes") -> None:
        """Mark placements as unknown where the size or order of their dimension depends on content."""
        for module, calls in seen.calls.items():
            if module not in self.places:
                continue
            for side in ("inputs", "outputs"):
                places: dict[int, Where] = getattr(self.places[module], side)
                for call in calls:
                    for position, sizes in getattr(call, side).items():
                        where = places.get(position)
                        if isinstance(where, Placement) and any(sizes.depends(dim) for dim in where.dims):
                            places[position] = "unknown"

    def _merge(self, fresh: dict[nn.Module, Places]) -> None:
        """Add the placements of another batch; those that differ become unknown."""
        for module, places in fresh.items():
            known = self.places.setdefault(module, places)
            for side in ("inputs", "outputs"):
                before: dict[int, Where] = getattr(known, side)
                for position, where in getattr(places, side).items():
                    before[position] = common((before.get(position, where), where))

    def _order(self, task: Task, batch: SampleBatch, fresh: dict[nn.Module, Places]) -> None:
        """Find whether the entries of one sample are adjacent or interleaved: entries that stay the same when the second sample
        is replaced are those of the first."""
        wanted = {module for module, places in fresh.items() if any(map(_is_flattened, _all(places)))}
        same, mixed = (_Shapes(self._model, wanted).see(task, batch.fetch(pair).data, 2) for pair in ([0, 0], [0, 1]))
        for module in wanted:
            for side in ("inputs", "outputs"):
                places: dict[int, Where] = getattr(fresh[module], side)
                for position, where in places.items():
                    if isinstance(where, Placement) and where.flattened:
                        values = [seen.value(module, side, position) for seen in (same, mixed)]
                        places[position] = replace(where, sample_major=_sample_major(where.dim, *values))

    def _pass(
        self, task: Task, batch: SampleBatch, packed: frozenset[int] = frozenset(), unknown: bool = False
    ) -> "_Shapes":
        data = batch.data
        content = ContentSizes(deep_leaves(data), packed, batch.size, unknown=unknown) if batch.size > 1 else None
        return _Shapes(self._model, content=content).see(task, data, batch.size)


def _packed(two: SampleBatch, three: SampleBatch, batch: SampleBatch) -> tuple[list[frozenset[int]], bool]:
    """The sizes of dimensions whose number of entries per sample may depend on the sample, for each of these batches; and
    whether the batches differ in more than the sizes and values of tensors, as lists of samples do."""
    leaves = [[leaf for leaf in deep_leaves(each.data) if not isinstance(leaf, _WORDS)] for each in (two, three, batch)]
    found: list[set[int]] = [set(), set(), set()]
    unknown = any([type(leaf) for leaf in each] != [type(leaf) for leaf in leaves[0]] for each in leaves)
    for group in () if unknown else zip(*leaves, strict=True):
        if not isinstance(group[0], Tensor):
            unknown |= not isinstance(group[0], (int, float)) or any(leaf != group[0] for leaf in group)
        elif len({leaf.ndim for leaf in group}) > 1 or any(leaf.layout != torch.strided for leaf in group):
            unknown = True
        else:
            for sizes in zip(*(leaf.shape for leaf in group), strict=True):
                if sizes[0] != sizes[1] and sizes != (2, 3, batch.size):
                    for each, size in zip(found, sizes, strict=True):
                        each.add(size)
    return [frozenset(each) for each in found], unknown


def _all(places: Places) -> list[Where]:
    return [*places.inputs.values(), *places.outputs.values()]


def _is_flattened(where: Where) -> bool:
    return isinstance(where, Placement) and where.flattened


def _sample_major(dim: int, same: Tensor | None, mixed: Tensor | None) -> bool:
    if same is None or mixed is None or same.shape != mixed.shape:
        return True
    unchanged = (same == mixed).movedim(dim, 0)
    unchanged = unchanged.reshape(len(unchanged), -1).all(1)
    half = len(unchanged) // 2
    return bool(unchanged[:half].all()) or not bool(unchanged[::2].all())


def _all_places(two: "_Shapes", three: "_Shapes") -> dict[nn.Module, Places]:
    return {
        module: Places(*(_places(calls, three.calls.get(module, []), side) for side in ("inputs", "outputs")))
        for module, calls in two.calls.items()
    }


def _places(two: list["_Call"], three: list["_Call"], side: Side) -> dict[int, Where]:
    found: dict[int, list[Where]] = {}
    for of_two, of_three in zip(two, three, strict=False):
        after = getattr(of_three, side)
        for position, sizes in getattr(of_two, side).items():
            found.setdefault(position, []).append(_place(sizes, after[position]) if position in after else "unknown")
    if len(two) != len(three):
        return dict.fromkeys(found, "unknown")
    return {position: common(places) for position, places in found.items()}


def _place(two: "_Sizes", three: "_Sizes") -> Where:
    where = infer(two.shape, three.shape)
    if isinstance(where, Placement) and any(two.depends(dim) and three.depends(dim) for dim in where.dims):
        return "unknown"
    return where


def _places_of_one(seen: "_Shapes") -> dict[nn.Module, Places]:
    """The placements in a batch of one, where every entry belongs to the sample."""
    whole = Placement((0,), flattened=True)
    found = {}
    for module, calls in seen.calls.items():
        places = Places()
        for call in calls:
            for side in ("inputs", "outputs"):
                for position, sizes in getattr(call, side).items():
                    getattr(places, side)[position] = whole if sizes.shape else "shared"
        found[module] = places
    return found


@dataclass
class _Sizes:
    """The shape of a tensor, and the dimensions whose size or order depends on the content of samples."""

    shape: Size
    dependent: frozenset[int]

    def depends(self, dim: int) -> bool:
        return dim in self.dependent


@dataclass
class _Call:
    inputs: dict[int, _Sizes]
    outputs: dict[int, _Sizes]


class _Shapes:
    """One forward pass: the shapes in every call of every module; of `wanted` modules, also the values in the first."""

    def __init__(
        self, model: nn.Module, wanted: set[nn.Module] | None = None, content: ContentSizes | None = None
    ) -> None:
        self._model = model
        self._wanted = wanted or set()
        self._content = content
        self._values: dict[tuple[nn.Module, Side], list[Any]] = {}
        self._given: list[tuple[nn.Module, dict[int, _Sizes]]] = []
        self.calls: dict[nn.Module, list[_Call]] = {}

    def see(self, task: Task, data: Any, size: int) -> "_Shapes":
        with ExitStack() as stack:
            for module in self._model.modules():
                stack.enter_context(_handle(module.register_forward_pre_hook(self._before, with_kwargs=True)))
                stack.enter_context(_handle(module.register_forward_hook(self._after, with_kwargs=True)))
            with torch.no_grad(), _checkpointing_unasked(), without_autocast(), batch_of(size):
                if self._content is not None:
                    stack.enter_context(self._content)
                task.output(self._model, data)
        return self

    def value(self, module: nn.Module, side: Side, position: int) -> Tensor | None:
        values = self._values.get((module, side), [])
        return values[position] if position < len(values) and isinstance(values[position], Tensor) else None

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module in self._wanted and (module, "inputs") not in self._values:
            self._values[module, "inputs"] = _copies(flatten((args, kwargs))[0])
        self._given.append((module, self._sizes(module, (args, kwargs))))
        if self._content is not None and _is_atomic(module):
            self._content.enter_atomic()

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._content is not None and _is_atomic(module):
            for leaf in args:
                if isinstance(leaf, PackedSequence):
                    self._content.trust(leaf)
            self._content.exit_atomic(flatten((args, kwargs))[0], flatten(output)[0])
        given = next(sizes for entered, sizes in reversed(self._given) if entered is module)
        self.calls.setdefault(module, []).append(_Call(given, self._sizes(module, output)))
        if module in self._wanted and (module, "outputs") not in self._values:
            self._values[module, "outputs"] = _copies(flatten(output)[0])

    def _sizes(self, module: nn.Module, tree: Any) -> dict[int, _Sizes]:
        known = _is_atomic(module)  # its rule finds the samples itself, also in packed sequences
        return {
            place: _Sizes(leaf.shape, frozenset() if known else self._dependent(leaf))
            for place, leaf in enumerate(flatten(tree)[0])
            if isinstance(leaf, Tensor)
        }

    def _dependent(self, tensor: Tensor) -> frozenset[int]:
        if self._content is None:
            return frozenset()
        return frozenset(dim for dim in range(tensor.ndim) if self._content.depends(tensor, dim))


def _is_atomic(module: nn.Module) -> bool:
    """Whether the module has a `CallRule`, which keeps the samples separate itself."""
    rule = find_rule(module)
    return rule is not None and rule.whole_call


def _copies(leaves: list[Any]) -> list[Any]:
    return [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


@contextmanager
def _checkpointing_unasked() -> Iterator[None]:
    """Hide the warning of checkpointing that no input requires a gradient."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
        yield


@contextmanager
def _handle(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def dependent(
    model: nn.Module, task: Task, batch: SampleBatch, modules: Sequence[nn.Module]
) -> dict[tuple[nn.Module, Side], set[int]]:
    """Find the arguments and outputs of these modules that depend on the parameters that currently require a gradient."""
    found: dict[tuple[nn.Module, Side], set[int]] = {}

    def note(module: nn.Module, side: Side, tree: Any) -> None:
        # Reentrant checkpointing hides the graph, so any floating-point tensor may depend on them.
        places = {
            place
            for place, leaf in enumerate(flatten(tree)[0])
            if isinstance(leaf, Tensor)
            and (leaf.requires_grad or (leaf.is_floating_point() and not torch.is_grad_enabled()))
        }
        found.setdefault((module, side), set()).update(places)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        note(module, "inputs", (args, kwargs))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        note(module, "outputs", output)

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(_handle(module.register_forward_pre_hook(before, with_kwargs=True)))
            stack.enter_context(_handle(module.register_forward_hook(after)))
        with _checkpointing_unasked(), without_autocast(), batch_of(batch.size):
            task.output(model, batch.data)
    return found
