"""Doing a little of everything that a run does, with a clock."""

import copy
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from scipy.linalg import cho_solve, cholesky
from torch.utils.data import DataLoader

from trak_lightning.check.estimates import Arithmetic, Featurizing, Storing
from trak_lightning.data.dataset import IndexedBatch
from trak_lightning.errors import StorageError
from trak_lightning.featurize.module import Featurizer
from trak_lightning.stores.base import FeatureRows, FeatureSpec, FeatureStore

SECONDS = 1.0
"""For how long batches are featurized."""
MOST = 12
"""How many at most."""
BLOCK = 2**23
"""Bytes of the features that are stored."""
ORDER = 1024
"""Of the matrices that arithmetic is tried on."""


class Rehearsal(Featurizer):
    """A featurizer of a few batches, spread evenly over the data, that keeps the time and stores nothing."""

    fit_seconds = 0.0

    def predict_dataloader(self) -> DataLoader:
        started = perf_counter()
        if self.task.fit_samples:
            self._bind_task(self._fit_task())
        if self._projector.fit_samples:
            self._fitted = self._fit()
        self.fit_seconds = perf_counter() - started
        self._ends: list[float] = []
        spec = self.feature_set.spec
        return self._data.loader(_Spread(spec.num_samples, spec.batch_size), pin_memory=self.device.type == "cuda")

    def predict_step(self, indexed: IndexedBatch, batch_idx: int, dataloader_idx: int = 0) -> FeatureRows:
        rows = self.computer.rows(indexed)
        self._ends.append(perf_counter())
        return rows

    def took(self, load: float, predict: float, first: float) -> Featurizing:
        """What was seen.

        Args:
            load: seconds that a checkpoint took to load.
            predict: seconds that all of the rehearsal took.
            first: seconds that the first batch of all took, before the rehearsal.
        """
        batches = [end - start for start, end in zip(self._ends, self._ends[1:], strict=False)]
        typical = median(batches)
        return Featurizing(
            sample=typical / self.feature_set.spec.batch_size,
            first_batch=max(0.0, first - typical),
            feature_set=max(0.0, predict - self.fit_seconds - typical - sum(batches)),
            fit=self.fit_seconds,
            load=load,
        )


class _Spread:
    """Batches of samples spread evenly over the data, others each time, until time is up: at least two."""

    def __init__(self, num_samples: int, batch_size: int) -> None:
        self._num_samples = num_samples
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[Sequence[int]]:
        started = perf_counter()
        for number in range(MOST):
            if number > 1 and perf_counter() - started > SECONDS:
                return
            shift = self._num_samples * number // (self._batch_size * MOST)
            yield [
                (self._num_samples * place // self._batch_size + shift) % self._num_samples
                for place in range(self._batch_size)
            ]

    def __len__(self) -> int:
        return MOST


def storing(store: FeatureStore, spec: FeatureSpec, rows: FeatureRows, near: Path) -> Storing:
    """Store two blocks of rows like these of the set `spec` in a folder beside `near` that is deleted again; nothing is known of
    a store that keeps them elsewhere.

    Raises:
        StorageError: nothing can be written there.
    """
    if store.elsewhere is not None:
        return Storing(0, 0.0, 0.0, 0.0, 0.0, in_memory=False)
    size = max(2, min(BLOCK // (4 * spec.dim), 64 * len(rows)))
    spec = replace(spec, num_samples=size + size // 2, batch_size=size, block_size=size)
    try:
        folder = tempfile.TemporaryDirectory(prefix=".trak-check-", dir=existing(near))
    except OSError as error:
        raise StorageError(f"nothing can be written where {near} is to be: {error}") from error
    with folder as name:
        trial = copy.deepcopy(store)
        trial.bind(Path(name))
        found = trial.create(spec)
        sizes, times = [found.nbytes()], []
        for block in range(2):
            part = _like(rows, spec.block_range(block))
            times.append((_timed(found.write_block, block, part), _timed(found.read_block, block)))
            sizes.append(found.nbytes())
        in_memory = not any(path.is_file() for path in Path(name).rglob("*"))
    whole, half = np.diff(sizes).astype(float)
    row = (whole - half) / (size - size // 2)
    write, read = (seconds / whole for seconds in times[0])
    return Storing(sizes[0], whole - row * size, row, write, read, in_memory)


def arithmetic() -> Arithmetic:
    """Products and factors of matrices of order `ORDER`."""
    values = np.random.default_rng(0).standard_normal((ORDER, ORDER))
    single, positive = values.astype(np.float32), values @ values.T + ORDER * np.eye(ORDER)
    factor = cholesky(positive, lower=True)

    def rate(operations: float, function: Callable[..., Any], *args: Any, **options: Any) -> float:
        return operations / median(_timed(function, *args, **options) for _ in range(3))

    return Arithmetic(
        single=rate(2 * ORDER**3, np.matmul, single, single.T),
        factor=rate(ORDER**3 / 3, cholesky, positive, lower=True, check_finite=False),
        solve=rate(2 * ORDER**3, cho_solve, (factor, True), values, check_finite=False),
        passed=rate(values.nbytes, np.tril, values),
    )


def resident_bytes() -> tuple[int, int]:
    """What this process holds in memory now, and at most so far; where the system does not tell the first, twice the second."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        now, peak = (1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
        return now, peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak


def existing(path: Path) -> Path:
    """The first folder around `path` that exists."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())


def _like(rows: FeatureRows, samples: range) -> FeatureRows:
    """Rows like these, as the rows of other samples: each multiplied by a number of its own, lest they compress too well."""
    again = np.arange(len(samples)) % len(rows)
    features = rows.features[again] * np.random.default_rng(0).uniform(0.5, 1.5, (len(again), 1)).astype(np.float32)
    columns = (getattr(rows, name)[again] for name in ("output", "loss_weight", "curvature"))
    return FeatureRows(np.array(samples), features.astype(rows.features.dtype, copy=False), *columns)


def _timed(function: Callable[..., Any], *args: Any, **options: Any) -> float:
    started = perf_counter()
    function(*args, **options)
    return perf_counter() - started
