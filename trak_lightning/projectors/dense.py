"""Dense random matrices, generated from a counter-based stream: kept in memory if they fit, else generated for every batch."""

from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from trak_lightning.errors import require_integer
from trak_lightning.gradients import ParameterLayout, ParameterSlot
from trak_lightning.projectors.base import BlockMap, Projector
from trak_lightning.projectors.philox import random_normals, random_signs

_TILE = {"cpu": 2**18, "cuda": 2**24}
"""Entries of P generated at a time: 1 MiB of float32 on a CPU, 64 MiB on a GPU. Generating them takes about fifteen times
as much working memory."""


class DenseProjector(Projector):
    """P with independent entries of mean 0 and variance 1/k (Park et al. 2023, section 3.2; Achlioptas 2003).

    Column j of a parameter's block is entries ``j·k … (j+1)·k`` of the stream of that parameter, so the matrix does not
    depend on how it is tiled.

    Args:
        memory_budget: bytes up to which the matrices of all parameters together are kept between batches. The rest is
            generated again for every batch, a few MiB at a time, which gives the same result slowly.
    """

    def __init__(
        self, dim: int = 2048, per: Literal["model", "layer"] = "model", *, memory_budget: int = 2**30
    ) -> None:
        super().__init__(dim, per)
        self.memory_budget = require_integer("memory_budget", memory_budget, 0, "a number of bytes")

    @property
    def state(self) -> dict[str, Any]:
        # The budget does not change the matrix, so a run may be resumed with another one.
        return {key: value for key, value in super().state.items() if key != "memory_budget"}

    def memory_bytes(self, layout: ParameterLayout) -> int:
        return min(4 * self.dim * layout.numel, self.memory_budget)

    @abstractmethod
    def entries(self, seed: int, start: int, count: int, device: torch.device) -> Tensor:
        """Return entries ``start … start + count`` of the stream of `seed`, of mean 0 and variance 1, float32 (count,)."""

    def block(self, slot: ParameterSlot, *, seed: int, device: torch.device) -> BlockMap:
        k = self.dim

        def columns(first: int, last: int) -> Tensor:
            return self.entries(seed, first * k, (last - first) * k, device).reshape(last - first, k)

        # Parameters are numbered from the start of the gradient: the first ones are kept until the budget is used up.
        keep = 4 * k * (slot.offset + slot.numel) <= self.memory_budget
        width = max(1, _TILE.get(device.type, 2**24) // k)
        tiles = [(first, min(first + width, slot.numel)) for first in range(0, slot.numel, width)]
        kept = torch.empty(slot.numel, k, device=device) if keep else None
        if kept is not None:
            for first, last in tiles:
                kept[first:last] = columns(first, last)

        def project(grad: Tensor, out: Tensor) -> None:
            for first, last in tiles if kept is None else [(0, slot.numel)]:
                matrix = columns(first, last) if kept is None else kept
                out.addmm_(grad[:, first:last].to(out.dtype), matrix.to(out.dtype), alpha=k**-0.5)

        project.whole_batches = kept is None  # type: ignore[attr-defined]
        return project


class Gaussian(DenseProjector):
    """Independent entries N(0, 1/k). Memory: at most ``memory_budget``, and one tile."""

    def entries(self, seed: int, start: int, count: int, device: torch.device) -> Tensor:
        return random_normals(seed, start, count, device)


class Rademacher(DenseProjector):
    """Independent entries ±1/√k, as in the paper's experiments. Memory: at most ``memory_budget``, and one tile."""

    def entries(self, seed: int, start: int, count: int, device: torch.device) -> Tensor:
        return random_signs(seed, start, count, device).float()
