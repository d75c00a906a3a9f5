"""What is seen of a model when it is shown batches of known size: which modules are called, and where what they take and
return holds the samples."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Size, Tensor, nn

from trak_lightning.data.samples import is_batched
from trak_lightning.data.trees import flatten, map_leaves
from trak_lightning.extractors.hooks.placement import Placement, Where, common, infer
from trak_lightning.tasks.base import Task

Side = Literal["inputs", "outputs"]


@dataclass
class Places:
    """Where the arguments and outputs of one module hold samples, by position in the flattened tree."""

    inputs: dict[int, Where] = field(default_factory=dict)
    outputs: dict[int, Where] = field(default_factory=dict)


class Probe:
    """Accumulates what is known of the modules of one model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.places: dict[nn.Module, Places] = {}

    def look(self, task: Task, batch: Any, size: int, sample: int) -> None:
        """Show the model one sample twice, and three times; learn of the modules that are called."""
        two, three = (_Shapes(self._model).see(task, take(batch, [sample] * count, size)) for count in (2, 3))
        fresh: dict[nn.Module, Places] = {}
        for module, calls in two.calls.items():
            if module not in self.places:
                fresh[module] = Places(
                    *(_places(calls, three.calls.get(module, []), side) for side in ("inputs", "outputs"))
                )
        self.places.update(fresh)
        if size > 1 and any(_is_flattened(where) for places in fresh.values() for where in _all(places)):
            self._order(task, batch, size, sample, fresh)

    def _order(self, task: Task, batch: Any, size: int, sample: int, fresh: dict[nn.Module, Places]) -> None:
        """Whether entries of one sample lie together or are interleaved: those that stay the same when the other sample
        is another are those of the first."""
        wanted = {module for module, places in fresh.items() if any(map(_is_flattened, _all(places)))}
        other = (sample + 1) % size
        same, mixed = (
            _Shapes(self._model, wanted).see(task, take(batch, pair, size)) for pair in ([sample] * 2, [sample, other])
        )
        for module in wanted:
            for side in ("inputs", "outputs"):
                places: dict[int, Where] = getattr(fresh[module], side)
                for position, where in places.items():
                    if isinstance(where, Placement) and where.flattened:
                        values = [seen.value(module, side, position) for seen in (same, mixed)]
                        places[position] = replace(where, sample_major=_sample_major(where.dim, *values))


def _all(places: Places) -> list[Where]:
    return [*places.inputs.values(), *places.outputs.values()]


def _is_flattened(where: Where) -> bool:
    return isinstance(where, Placement) and where.flattened


def _sample_major(dim: int, same: Tensor | None, mixed: Tensor | None) -> bool:
    if same is None or mixed is None or same.shape != mixed.shape:
        return True
    unchanged = (same == mixed).movedim(dim, 0).flatten(1).all(1)
    half = len(unchanged) // 2
    return bool(unchanged[:half].all()) or not bool(unchanged[::2].all())


def _places(two: list["_Call"], three: list["_Call"], side: Side) -> dict[int, Where]:
    shapes = [[getattr(call, side) for call in calls] for calls in (two, three)]
    found: dict[int, list[Where]] = {}
    for of_two, of_three in zip(*shapes, strict=False):
        for position, shape in of_two.items():
            where = infer(shape, of_three[position]) if position in of_three else "unknown"
            found.setdefault(position, []).append(where)
    if len(two) != len(three):
        return dict.fromkeys(found, "unknown")
    return {position: common(places) for position, places in found.items()}


@dataclass
class _Call:
    inputs: dict[int, Size]
    outputs: dict[int, Size]


class _Shapes:
    """One forward pass: the shapes in every call of every module; of `wanted` modules, also the values in the first."""

    def __init__(self, model: nn.Module, wanted: set[nn.Module] | None = None) -> None:
        self._model = model
        self._wanted = wanted or set()
        self._values: dict[tuple[nn.Module, Side], list[Any]] = {}
        self.calls: dict[nn.Module, list[_Call]] = {}

    def see(self, task: Task, batch: Any) -> "_Shapes":
        with ExitStack() as stack:
            for module in self._model.modules():
                stack.enter_context(_handle(module.register_forward_pre_hook(self._before, with_kwargs=True)))
                stack.enter_context(_handle(module.register_forward_hook(self._after, with_kwargs=True)))
            with torch.no_grad(), _checkpointing_unasked():
                task.output(self._model, batch)
        return self

    def value(self, module: nn.Module, side: Side, position: int) -> Tensor | None:
        values = self._values.get((module, side), [])
        return values[position] if position < len(values) and isinstance(values[position], Tensor) else None

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module in self._wanted and (module, "inputs") not in self._values:
            self._values[module, "inputs"] = _copies(flatten((args, kwargs))[0])

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = _Call(_sizes((args, kwargs)), _sizes(output))
        self.calls.setdefault(module, []).append(call)
        if module in self._wanted and (module, "outputs") not in self._values:
            self._values[module, "outputs"] = _copies(flatten(output)[0])


def _sizes(tree: Any) -> dict[int, Size]:
    return {place: leaf.shape for place, leaf in enumerate(flatten(tree)[0]) if isinstance(leaf, Tensor)}


def _copies(leaves: list[Any]) -> list[Any]:
    return [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


@contextmanager
def _checkpointing_unasked() -> Iterator[None]:
    """Without the warning that nothing is checkpointed where nothing requires a gradient."""
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
    model: nn.Module, task: Task, batch: Any, modules: Sequence[nn.Module]
) -> dict[tuple[nn.Module, Side], set[int]]:
    """Which arguments and outputs of these modules depend on the parameters that require a gradient now."""
    found: dict[tuple[nn.Module, Side], set[int]] = {}

    def note(module: nn.Module, side: Side, tree: Any) -> None:
        # Under reentrant checkpointing nothing can be seen, and everything may depend on everything.
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
        with _checkpointing_unasked():
            task.output(model, batch)
    return found


def take(batch: Any, samples: list[int], size: int) -> Any:
    """The batch of these samples."""
    return map_leaves(lambda leaf: leaf[samples] if is_batched(leaf, size) else leaf, batch)
