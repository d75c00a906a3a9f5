"""Coordinate subsampling."""

import torch
from torch import Tensor

from trak_lightning.gradients import ParameterLayout, ParameterSlot
from trak_lightning.projectors.base import BlockMap, BlockMaps, ProjectionSpec, Projector, layers
from trak_lightning.projectors.philox import random_integers, random_signs
from trak_lightning.seeds import derive_seed


class RandomMask(Projector):
    """Keeps k of the p gradient entries, each as ``±√s · g_j``, where s is the number of entries it represents.

    The flattened gradient is cut into k strata of p/k entries, and one entry is drawn from each: E⟨Pg, Ph⟩ = ⟨g, h⟩. Where
    a stratum spans two parameters, one entry is drawn from each of them, and the two are added with their signs. This is
    the cheapest projector. It works well unless a few entries dominate; then its variance is that of sampling, up to p/k
    times a dense matrix's. As the first projector of a chain it is the mask of Hu et al. 2025, "GraSS: scalable data
    attribution with gradient sparsification and sparse projection".

    Memory: 12·k bytes, and 24 bytes per parameter tensor.

    Args:
        dim: k, the number of projected dimensions; all entries are kept if p is at most k.
    """

    def memory_bytes(self, layout: ParameterLayout) -> int:
        return sum(12 * len(strata) for strata in self._strata(layout).values())

    def bind(self, spec: ProjectionSpec) -> BlockMaps:
        strata = self._strata(spec.layout)
        return lambda slot: strata[slot.name].draw(spec.seed_of(slot), spec.device)

    def _strata(self, layout: ParameterLayout) -> dict[str, "_Strata"]:
        groups = layers(layout).values() if self.per == "layer" else [list(layout)]
        found = {}
        for group in groups:
            total = sum(slot.numel for slot in group)
            for slot in group:
                found[slot.name] = _Strata(slot, slot.offset - group[0].offset, total, min(self.dim, total))
        return found


class _Strata:
    """The strata that one parameter has entries in; `total` entries are cut into `count` strata."""

    def __init__(self, slot: ParameterSlot, offset: int, total: int, count: int) -> None:
        self._numel, self._offset, self._total, self._count = slot.numel, offset, total, count
        # Stratum i begins with entry ⌊i·total/count⌋.
        self._first = ((offset + 1) * count - 1) // total
        self._last = ((offset + slot.numel) * count - 1) // total

    def __len__(self) -> int:
        return self._last - self._first + 1

    def draw(self, seed: int, device: torch.device) -> BlockMap:
        bounds = torch.arange(self._first, self._last + 2, device=device) * self._total // self._count
        bounds = (bounds - self._offset).clamp_(0, self._numel)
        sizes = bounds[1:] - bounds[:-1]
        kept = bounds[:-1] + random_integers(derive_seed(seed, "entries"), len(self), sizes, device)
        scale = sizes.float().sqrt_() * random_signs(derive_seed(seed, "signs"), 0, len(self), device)

        def project(grad: Tensor, out: Tensor) -> None:
            out[:, self._first : self._last + 1].addcmul_(grad.index_select(1, kept).to(out.dtype), scale.to(out.dtype))

        return project
