"""Which samples a training has seen by a step, from the order in which its sampler yields them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trak_lightning.model.checkpoints import subset_path
from trak_lightning.run.numpy_files import write_npy


class RecordedOrder:
    """The positions that the sampler of a loader yields, from the beginning of training.

    Workers and prefetching read ahead, so only the first so many positions were trained on.

    Args:
        loader: a DataLoader that draws single positions, of one process or of several.
    """

    def __init__(self, loader: Any) -> None:
        batches = loader.batch_sampler
        while hasattr(batches, "batch_sampler"):  # what accelerate wraps around it for several processes
            batches = batches.batch_sampler
        self.positions: list[int] = []
        batches.sampler = _Recording(batches.sampler, self.positions)

    def save(self, checkpoint: str | Path, trained: int | None = None) -> None:
        """Write, next to a checkpoint, the positions of the samples that it was trained on: the first `trained`, or all that
        were drawn."""
        seen = np.unique(np.array(self.positions[:trained], dtype=np.int64))
        write_npy(subset_path(checkpoint), seen)

    def save_all(self, folder: Path) -> None:
        """Write the whole order to ``order.npy``."""
        write_npy(folder / "order.npy", np.array(self.positions, dtype=np.int64))


class _Recording:
    """A sampler that remembers what it yields."""

    def __init__(self, sampler: Any, positions: list[int]) -> None:
        self._sampler = sampler
        self._positions = positions

    def __iter__(self) -> Iterator[int]:
        for position in self._sampler:
            self._positions.append(int(position))
            yield position

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:  # set_epoch, seeds
        return getattr(self._sampler, name)
