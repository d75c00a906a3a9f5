"""Scoring on the devices of a Lightning Fabric: rows are split among processes, Gram matrices are all-reduced.

This is the only part of scoring that imports torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lightning.fabric import Fabric

from trak_lightning.run.arrays import Array
from trak_lightning.scoring.backend import Backend, GramSum, LeftFactor, Value


class FabricBackend(Backend):
    """The device of this process, and the other processes of the Fabric.

    On a GPU, products are computed there in full single precision, whatever is set for TF32, and summed in float64; on a
    CPU, numpy computes them. Factorizing and solving is little work, and is done on the CPU of each process.

    Args:
        fabric: a launched Fabric with one device per process.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.rank = fabric.global_rank
        self.world_size = fabric.world_size
        self._on_cpu = fabric.device.type == "cpu"

    def left_factor(self, rows: Array) -> LeftFactor:
        return super().left_factor(rows) if self._on_cpu else _TorchLeftFactor(rows, self._fabric.device)

    def gram_sum(self, k: int) -> GramSum:
        return super().gram_sum(k) if self._on_cpu else _TorchGramSum(k, self._fabric.device)

    def all_reduce(self, values: Array) -> Array:
        if self.world_size == 1:
            return values
        summed = self._fabric.all_reduce(self._on_device(values), reduce_op="sum")
        assert isinstance(summed, torch.Tensor)
        found: Array = summed.cpu().numpy().reshape(values.shape)
        return found

    def gather(self, values: Array) -> list[Array]:
        if self.world_size == 1:
            return [values]
        gathered = self._fabric.all_gather(self._on_device(values))
        assert isinstance(gathered, torch.Tensor)
        return list(gathered.cpu().numpy())

    def _on_device(self, values: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._fabric.device)

    def broadcast(self, value: Value) -> Value:
        found: Value = self._fabric.broadcast(value)
        return found

    def barrier(self) -> None:
        self._fabric.barrier()


class _TorchLeftFactor:
    def __init__(self, rows: Array, device: torch.device) -> None:
        self._rows = torch.from_numpy(rows).to(device)

    def __call__(self, rows: Array, out: Array) -> None:
        others = torch.from_numpy(rows).to(self._rows.device)
        self._rows = self._rows.to(others.dtype)  # converts once: afterwards it has that precision
        with full_precision():
            out[:] = (self._rows @ others.T).cpu().numpy()


class _TorchGramSum:
    def __init__(self, k: int, device: torch.device) -> None:
        self._total = torch.zeros(k, k, dtype=torch.float64, device=device)

    def add(self, piece: Array) -> None:
        rows = torch.from_numpy(piece).to(self._total.device)
        with full_precision():
            self._total += rows.T @ rows

    def result(self) -> Array:
        found: Array = self._total.tril().cpu().numpy()
        return found


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute products of float32 in float32, not in TF32 or bfloat16, whatever the program has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
