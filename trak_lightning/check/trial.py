"""Featurize a few batches with a clock, and store nothing."""

import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trak_lightning.data.loading import IndexedBatch
from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import DataError, OneSampleAtATime
from trak_lightning.featurize.batch_audit import outputs
from trak_lightning.featurize.fitting import FitFile
from trak_lightning.featurize.module import Featurizer
from trak_lightning.model.leave_unchanged import leave_unchanged
from trak_lightning.stores.base import FeatureRows
from trak_lightning.tasks.base import Task

SECONDS = 1.0
"""How long batches are tried."""
MOST = 12
"""How many batches are tried at most."""
LARGER = (2, 8)
"""By which weights are multiplied to see that a batch loss is that of its samples by chance."""


class Trial(Featurizer):
    """A featurizer of a few batches, spread evenly over the data. The first is the first batch of the data, or the one of the longest
    samples."""

    first: IndexedBatch
    rows: FeatureRows
    """The rows of the first batch."""
    difference: float
    """The largest relative difference of a sample's gradient alone and in the first batch."""
    fit_seconds: float
    first_seconds: float

    def predict_dataloader(self) -> DataLoader:
        started = perf_counter()
        self.fit()
        self.fit_seconds = perf_counter() - started
        self.ends: list[float] = []
        spec = self.feature_set.spec
        lengths = self.data.lengths
        size = spec.batch_size
        chosen = _spread(spec.num_samples, size) if lengths is None else _of_every_length(lengths, size)
        return self.data.loader(chosen, pin_memory=self.device.type == "cuda")

    def predict_step(self, indexed: IndexedBatch, batch_idx: int, dataloader_idx: int = 0) -> FeatureRows:
        started = perf_counter()
        rows = self.computer.rows(indexed)
        if batch_idx == 0:
            self.first, self.rows = indexed, rows
            self.difference = self.computer.check_independence(indexed.index, rows)
            self.first_seconds = perf_counter() - started
        self.ends.append(perf_counter())
        return rows

    def on_predict_end(self) -> None:  # last: weights that change between two batches are noticed
        super().on_predict_end()
        require_batch_loss(self.model, self.spec.task, self.computer.samples(self.first))

    def _stored(self, file: FitFile, fit: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return fit()

    @property
    def batch_seconds(self) -> list[float]:
        """What every batch but the first took, loading included."""
        return [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]


def require_batch_loss(model: nn.Module, task: Task, batch: SampleBatch) -> None:
    """Refuse a loss that is normalized over the batch, also before training: a fresh model is about equally wrong about every sample, and
    such a mean hardly differs from that of the samples. Other, larger weights tell them apart, as training does.

    Raises:
        DataError: as featurizing would after training.
    """
    if batch.size == 1 or type(task).require_agreement is Task.require_agreement:
        return
    random = torch.Generator().manual_seed(0)
    for factor in LARGER:
        with leave_unchanged(model), torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    noise = torch.randn(parameter.shape, generator=random) / 10  # a last layer may begin with zeros
                    parameter.add_(noise.to(parameter)).mul_(factor)
            try:
                outputs(model, task, batch)
                return  # a loss of each sample
            except OneSampleAtATime as refusal:
                whole = refusal.whole
            alone = torch.cat([outputs(model, task, batch.fetch([each])) for each in range(batch.size)])
            if not alone.isfinite().all():
                return
            try:
                task.require_agreement(whole, alone)
            except DataError as error:
                raise DataError(
                    f"with other weights, for which samples differ more than for a fresh model, {error}"
                ) from None


class _Tried:
    """The batches number 0, 1, … until time is up, but `least` after the first one."""

    def __init__(self, batch: Callable[[int], Sequence[int]], least: int) -> None:
        self._batch = batch
        self._least = least

    def __iter__(self) -> Iterator[Sequence[int]]:
        yield self._batch(0)
        started = perf_counter()
        for number in range(1, MOST):
            if number > self._least and perf_counter() - started > SECONDS:
                return
            yield self._batch(number)

    def __len__(self) -> int:
        return MOST


def _spread(num_samples: int, batch_size: int) -> _Tried:
    """The first batch, then samples spread evenly over the data, other samples each time."""

    def batch(number: int) -> Sequence[int]:
        if not number:
            return range(batch_size)
        shift = num_samples * number // (batch_size * MOST)
        return [(num_samples * place // batch_size + shift) % num_samples for place in range(batch_size)]

    return _Tried(batch, 1)


def _of_every_length(lengths: npt.NDArray[np.integer[Any]], batch_size: int) -> _Tried:
    """Samples of similar length: the longest, then some that are spread evenly over all lengths however soon time is up. The mean of these
    stands for all batches."""
    order = np.argsort(lengths, kind="stable")
    last = len(order) - batch_size

    def batch(number: int) -> Sequence[int]:
        digits = reversed(bin(number)[2:])
        share = sum(int(digit) / 2 ** (place + 1) for place, digit in enumerate(digits)) if number else 1
        start = round(last * share)
        return order[start : start + batch_size].tolist()

    return _Tried(batch, 2)


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return 1024 * int(fields["VmHWM"].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
