"""Several projectors, one after another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trak_lightning import registry
from trak_lightning.errors import SettingsError
from trak_lightning.gradients import ParameterLayout, ParameterSlot, Sink
from trak_lightning.projectors.base import FACTORS, BlockMap, BlockMaps, Projection, ProjectionSpec, Projector
from trak_lightning.seeds import derive_seed


class Chain(Projector):
    """``P = P_m ⋯ P_2 P_1``: the features of each projector are the gradient of the next.

    Put cheap maps first; the last one decides k. ``[random_mask, sparse_jl]`` is GraSS (Hu et al. 2025), ``[lowrank,
    sparse_jl]`` is LoGRA with k dimensions in total. If a projector gives every parameter or layer its own features, the
    next one treats each of these groups of features as a parameter::

        projector:
          name: chain
          projectors:
            - {name: lowrank, rank: 32}
            - {name: sparse_jl, dim: 4096}

    On the command line: ``--projector chain --projector.projectors "[{name: lowrank, rank: 32}, sparse_jl]"``.

    Memory: that of its projectors, and the features of each of them for one batch.

    Args:
        projectors: names, or mappings with a ``name`` and options, in the order of application.
    """

    def __init__(
        self, projectors: Sequence[str | dict[str, Any] | Projector] = ({"name": "lowrank", "rank": 32}, "sparse_jl")
    ) -> None:
        if not isinstance(projectors, (list, tuple)) or not projectors:
            raise SettingsError(f"projectors must be a list of at least one projector, got {projectors!r}")
        self._projectors: tuple[Projector, ...] = tuple(
            registry.create("projectors", projector) for projector in projectors
        )
        self.fit_samples = self._projectors[0].fit_samples
        for projector in self._projectors[1:]:
            if projector.fit_samples:
                raise SettingsError(
                    f"{type(projector).__name__} is fitted to gradients, so it can only be the first projector of a chain"
                )

    @property
    def state(self) -> dict[str, Any]:
        return {**super().state, "projectors": [projector.state for projector in self._projectors]}

    def columns(self, layout: ParameterLayout) -> dict[str, slice]:
        links = self._links(layout)
        last = self._projectors[-1].columns(links[-1].layout)
        return {slot.name: last[_path(slot.name, links)[-1]] for slot in layout}

    def memory_bytes(self, layout: ParameterLayout) -> int | None:
        held = [
            projector.memory_bytes(link.layout)
            for projector, link in zip(self._projectors, self._links(layout), strict=True)
        ]
        known = [size for size in held if size is not None]
        return sum(known) if len(known) == len(held) else None

    def bind(self, spec: ProjectionSpec) -> BlockMaps:
        links = self._links(spec.layout)
        projections = [
            Projection(
                projector,
                link.layout,
                seed=derive_seed(spec.seed, "chain", position) if position else spec.seed,
                checkpoint=spec.checkpoint,
                device=spec.device,
                fitted={} if position else spec.fitted,
            )
            for position, (projector, link) in enumerate(zip(self._projectors, links, strict=True))
        ]

        def block(slot: ParameterSlot) -> BlockMap:
            names = _path(slot.name, links)
            maps = [projection.map(name) for projection, name in zip(projections, names, strict=True)]
            composed = maps[-1]
            for position in range(len(maps) - 2, -1, -1):
                width = links[position + 1].layout.by_name[names[position + 1]].numel
                composed = _Composed(maps[position], width, composed)
            return composed

        return block

    def fit(self, layout: ParameterLayout, gradients: Callable[[Sink], None], *, seed: int) -> dict[str, Tensor]:
        return self._projectors[0].fit(layout, gradients, seed=seed)

    def _links(self, layout: ParameterLayout) -> list["_Link"]:
        links = [_Link(layout, {})]
        for projector in self._projectors[:-1]:
            links.append(_features_as_parameters(projector, links[-1].layout))
        return links


@dataclass(frozen=True)
class _Link:
    """The parameters of one projector of a chain, and which of them each parameter of the previous one adds to."""

    layout: ParameterLayout
    receives: Mapping[str, str]


def _features_as_parameters(projector: Projector, layout: ParameterLayout) -> _Link:
    sharing: dict[tuple[int, int], list[ParameterSlot]] = {}
    for name, columns in projector.columns(layout).items():
        sharing.setdefault((columns.start, columns.stop), []).append(layout.by_name[name])
    slots, receives = [], {}
    for (start, stop), senders in sorted(sharing.items()):
        of_one_layer = len({slot.layer for slot in senders}) == 1
        name = senders[0].name if len(senders) == 1 else f"{senders[0].layer}." * of_one_layer + "features"
        slots.append(ParameterSlot(name, (stop - start,), start))
        receives.update({slot.name: name for slot in senders})
    return _Link(ParameterLayout(tuple(slots)), receives)


def _path(name: str, links: Sequence[_Link]) -> list[str]:
    """The name of a parameter's features in the layout of each projector."""
    names = [name]
    for link in links[1:]:
        names.append(link.receives[names[-1]])
    return names


class _Composed:
    """One block after another. It accepts the factored blocks that the first one accepts."""

    def __init__(self, first: BlockMap, width: int, then: BlockMap) -> None:
        self._first, self._width, self._then = first, width, then
        self.whole_batches = any(getattr(step, "whole_batches", False) for step in (first, then))
        for name in FACTORS.values():
            if hasattr(first, name):
                setattr(self, name, self._after(getattr(first, name)))

    def __call__(self, grad: Tensor, out: Tensor) -> None:
        self._after(self._first)(grad, out)

    def _after(self, first: Callable[[Any, Tensor], None]) -> Callable[[Any, Tensor], None]:
        def composed(gradient: Any, out: Tensor) -> None:
            features = torch.zeros(len(out), self._width, dtype=out.dtype, device=out.device)
            first(gradient, features)
            self._then(features, out)

        return composed
