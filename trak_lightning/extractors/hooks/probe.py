"""Run a model on batches of known size to learn which modules are called, and which dimensions of their arguments and
outputs hold the samples."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Size, Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from trak_lightning.data.samples import SampleBatch
from trak_lightning.data.trees import deep_leaves, leaves_of
from trak_lightning.extractors.hooks.content_sizes import ContentSizes
from trak_lightning.extractors.hooks.decisions import Decisions
from trak_lightning.extractors.hooks.graph import Ancestry
from trak_lightning.extractors.hooks.placement import Placement, Where, common, infer
from trak_lightning.extractors.rules import find_rule
from trak_lightning.model.autocast import without_autocast
from trak_lightning.tasks.base import Task, batch_of

Side = Literal["inputs", "outputs"]
SIDES: tuple[Side, ...] = get_args(Side)

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

    def begin(self, batch: SampleBatch, parts: Sequence[SampleBatch]) -> "Look":
        """Prepare to look at a batch of several samples, and at `parts` of it, or at the whole of it."""
        return Look(self._model, batch, parts)

    def look(self, task: Task, batch: SampleBatch, look: "Look | None") -> "Shapes":
        """Run the model on two and on three copies of one sample to find the dimensions that hold the samples. Where sizes and
        orders depend on the content of the samples, `look` has shown that in passes of its parts. It is None for a batch of one.
        Return the pass of two copies, or of one."""
        if look is None:
            one = self.trace(task, batch)
            self._merge(_places_of_one(one))
            return one
        two, three = look.see(task)
        fresh = _all_places(two, three)
        if any(_is_flattened(where) for places in fresh.values() for where in _all(places)):
            self._order(task, batch, fresh)
        self._merge(fresh)
        for seen in look.parts:
            self._distrust(seen)
        return two

    def trace(self, task: Task, batch: SampleBatch) -> "Shapes":
        """Run the model on a batch to find which parameters the arguments and outputs of modules depend on."""
        return Shapes(self._model, ancestry=Ancestry(self._model.parameters())).see(task, batch)

    def _distrust(self, seen: "Shapes") -> None:
        """Mark placements as unknown where the size or order of their dimension depends on content."""
        for module, calls in seen.calls.items():
            if module not in self.places:
                continue
            for side in SIDES:
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
            for side in SIDES:
                before: dict[int, Where] = getattr(known, side)
                for position, where in getattr(places, side).items():
                    before[position] = common((before.get(position, where), where))

    def _order(self, task: Task, batch: SampleBatch, fresh: dict[nn.Module, Places]) -> None:
        """Find whether the entries of one sample are adjacent or interleaved: entries that stay the same when the second sample
        is replaced are those of the first."""
        wanted = {module for module, places in fresh.items() if any(map(_is_flattened, _all(places)))}
        same, mixed = (
            Shapes(self._model, wanted, values=True).see(task, batch.fetch(pair)) for pair in ([0, 0], [0, 1])
        )
        for module in wanted:
            for side in SIDES:
                places: dict[int, Where] = getattr(fresh[module], side)
                for position, where in places.items():
                    if isinstance(where, Placement) and where.flattened:
                        values = [seen.value(module, side, position) for seen in (same, mixed)]
                        places[position] = replace(where, sample_major=_sample_major(where.dim, *values))


class Look:
    """The passes that show where a batch holds its samples: of two and of three copies of its first sample, and of `parts`, which
    are passes that the caller makes, each within `Shapes.watching`."""

    def __init__(self, model: nn.Module, batch: SampleBatch, parts: Sequence[SampleBatch]) -> None:
        self.twins, self._triplets = batch.fetch([0, 0]), batch.fetch([0, 0, 0])
        batches = [self.twins, self._triplets, *parts]
        packed, unknown = _packed(batches)
        parameters = list(model.parameters())
        shapes = [
            Shapes(
                model,
                content=ContentSizes(sizes, each.size, unknown=unknown, parameters=parameters),
                ancestry=Ancestry(parameters) if each is self.twins else None,
            )
            for each, sizes in zip(batches, packed, strict=True)
        ]
        self._few, self.parts = shapes[:2], shapes[2:]

    def see_twins(self, task: Task) -> "Shapes":
        """Make the pass of two samples, unless it was made."""
        two = self._few[0]
        return two if two.complete else two.see(task, self.twins)

    def see(self, task: Task) -> tuple["Shapes", "Shapes"]:
        """Make the passes of two and of three samples."""
        return self.see_twins(task), self._few[1].see(task, self._triplets)

    @property
    def decides(self) -> bool:
        """Whether Python reads numbers that belong to the batch as a whole: others are read as often as there are samples."""
        two, three = (each.decisions.reads for each in self._few)
        return 3 * two != 2 * three

    @property
    def doubtful(self) -> list[str]:
        """Where Python reads, of the batch as a whole, what may be another answer for a sample alone; the most frequent first."""
        found = sum((part.decisions.doubtful for part in self.parts), Counter[str]())
        return [place for place, _ in found.most_common()] if self.decides else []

    @property
    def alike(self) -> bool:
        """Whether the parts make the same operations as two copies of one sample, and those with parameters as often. How often the others
        are made may depend on B or on a length, as where a task computes some rows at a time."""
        return all(_without_counts(part.operations) == _without_counts(self._few[0].operations) for part in self.parts)


def _without_counts(operations: Counter[tuple[Any, ...]]) -> dict[tuple[Any, ...], int]:
    """Operations, with the number of those that were given parameters."""
    return {made_with: number if len(made_with) > 1 else 1 for made_with, number in operations.items()}


def _packed(batches: Sequence[SampleBatch]) -> tuple[list[frozenset[int]], bool]:
    """The sizes of dimensions whose number of entries per sample may depend on the sample, for each of these batches; and
    whether the batches differ in more than the sizes and values of tensors, as lists of samples do."""
    leaves = [[leaf for leaf in deep_leaves(each.data) if not isinstance(leaf, _WORDS)] for each in batches]
    found: list[set[int]] = [set() for _ in batches]
    own = tuple(each.size for each in batches)
    unknown = any([type(leaf) for leaf in each] != [type(leaf) for leaf in leaves[0]] for each in leaves)
    for group in () if unknown else zip(*leaves, strict=True):
        if not isinstance(group[0], Tensor):
            unknown |= not isinstance(group[0], (int, float)) or any(leaf != group[0] for leaf in group)
        elif len({leaf.ndim for leaf in group}) > 1 or any(leaf.layout != torch.strided for leaf in group):
            unknown = True
        else:
            for sizes in zip(*(leaf.shape for leaf in group), strict=True):
                if sizes[0] != sizes[1] and sizes != own:
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


def _all_places(two: "Shapes", three: "Shapes") -> dict[nn.Module, Places]:
    return {
        module: Places(*(_places(calls, three.calls.get(module, []), side) for side in SIDES))
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


def _places_of_one(seen: "Shapes") -> dict[nn.Module, Places]:
    """The placements in a batch of one, where every entry belongs to the sample."""
    whole = Placement((0,), flattened=True)
    found = {}
    for module, calls in seen.calls.items():
        places = Places()
        for call in calls:
            for side in SIDES:
                for position, sizes in getattr(call, side).items():
                    getattr(places, side)[position] = whole if sizes.shape else "shared"
        found[module] = places
    return found


@dataclass
class _Sizes:
    """The shape of a tensor, the dimensions whose size or order depends on the content of samples, and the bits of the parameters that
    it depends on (`Ancestry`)."""

    shape: Size
    dependent: frozenset[int]
    ancestors: int

    def depends(self, dim: int) -> bool:
        return dim in self.dependent


@dataclass
class _Call:
    inputs: dict[int, _Sizes]
    outputs: dict[int, _Sizes]


class Shapes:
    """One forward pass: the shapes in every call of every module, or only of `modules`; with `values`, also those in the first."""

    def __init__(
        self,
        model: nn.Module,
        modules: Iterable[nn.Module] | None = None,
        *,
        values: bool = False,
        content: ContentSizes | None = None,
        ancestry: Ancestry | None = None,
    ) -> None:
        self._model = model
        self._ancestry = ancestry
        self._modules = list(model.modules() if modules is None else modules)
        self._keeps_values = values
        self._content = content
        self._values: dict[tuple[nn.Module, Side], list[Any]] = {}
        self._given: list[tuple[nn.Module, dict[int, _Sizes]]] = []
        self._atomic = {module for module in model.modules() if _is_atomic(module)}
        self.calls: dict[nn.Module, list[_Call]] = {}
        self.selected: set[nn.Module] = set()
        """Modules whose outputs have a size or order that depends on content, after entries were selected by their values."""
        self.complete = False
        """Whether `see` has made the pass."""
        self._output = 0

    def see(self, task: Task, batch: SampleBatch) -> "Shapes":
        """Make the pass."""
        data = batch.data
        with _checkpointing_unasked(), without_autocast(), batch_of(batch.size), self.watching(data):
            output = task.output(self._model, data)
            if self._ancestry is not None and isinstance(output, Tensor):
                self._output = self._ancestry.of(output)
        self.complete = True
        return self

    def used(self, modules: Iterable[nn.Module]) -> int:
        """How many parameters of these modules, without those inside them, the output of the task depends on, as the graph shows it."""
        assert self._ancestry is not None
        own = {parameter for module in modules for parameter in module.parameters(recurse=False)}
        return (self._ancestry.among(own) & self._output).bit_count()

    @contextmanager
    def watching(self, data: Any) -> Iterator[None]:
        """Note a forward pass on this data that is made inside."""
        handles: list[Any] = []
        try:
            for module in self._modules:
                handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
                handles.append(module.register_forward_hook(self._after, with_kwargs=True))
            if self._content is not None:
                self._content.begin(deep_leaves(data))
            with nullcontext() if self._content is None else self._content:
                yield
        finally:
            for handle in handles:
                handle.remove()
            if self._ancestry is not None:
                self._ancestry.forget()

    def dependent(self, parameters: Iterable[Tensor]) -> dict[tuple[nn.Module, Side], set[int]]:
        """The arguments and outputs of all modules that depend on these parameters, which required a gradient in the pass."""
        assert self._ancestry is not None
        bits, found = self._ancestry.among(parameters), dict[tuple[nn.Module, Side], set[int]]()
        for module, calls in self.calls.items():
            for side in SIDES:
                places = [getattr(call, side).items() for call in calls]
                found[module, side] = {place for each in places for place, sizes in each if sizes.ancestors & bits}
        return found

    @property
    def decisions(self) -> Decisions:
        """What Python has read."""
        return Decisions() if self._content is None else self._content.decisions

    @property
    def operations(self) -> Counter[tuple[Any, ...]]:
        """How often each operation was made."""
        return Counter() if self._content is None else self._content.operations

    def value(self, module: nn.Module, side: Side, position: int) -> Tensor | None:
        values = self._values.get((module, side), [])
        return values[position] if position < len(values) and isinstance(values[position], Tensor) else None

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._keeps_values and (module, "inputs") not in self._values:
            self._values[module, "inputs"] = _copies(leaves_of((args, kwargs)))
        self._given.append((module, self._sizes(module, (args, kwargs))))
        if self._content is not None and module in self._atomic:
            self._content.enter_atomic()

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._content is not None and module in self._atomic:
            for leaf in args:
                if isinstance(leaf, PackedSequence):
                    self._content.trust(leaf)
            self._content.exit_atomic(leaves_of((args, kwargs)), leaves_of(output))
        given = next(sizes for entered, sizes in reversed(self._given) if entered is module)
        call = _Call(given, self._sizes(module, output))
        self.calls.setdefault(module, []).append(call)
        if (
            self._content is not None
            and self._content.selects
            and any(each.dependent for each in call.outputs.values())
        ):
            self.selected.add(module)
        if self._keeps_values and (module, "outputs") not in self._values:
            self._values[module, "outputs"] = _copies(leaves_of(output))

    def _sizes(self, module: nn.Module, tree: Any) -> dict[int, _Sizes]:
        # The rule of an atomic module finds the samples itself, also in packed sequences.
        content = None if module in self._atomic else self._content
        return {
            place: _Sizes(
                leaf.shape,
                frozenset() if content is None else content.dependent(leaf),
                0 if self._ancestry is None else self._ancestry.of(leaf),
            )
            for place, leaf in enumerate(leaves_of(tree))
            if isinstance(leaf, Tensor)
        }


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
