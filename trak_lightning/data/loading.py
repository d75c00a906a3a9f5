"""Load batches in the order of the dataset, and compare them with their samples, read again and collated alone."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from trak_lightning.data.collation_check import differences
from trak_lightning.data.content import content_hash, extent
from trak_lightning.data.trees import snapshot
from trak_lightning.errors import DataError
from trak_lightning.run.content_hashes import changed
from trak_lightning.run.formatting import listed
from trak_lightning.seeds import derive_seed

FREE_SECONDS = 1.0
"""How long a process may compare before the share counts."""

SHARE = 1 / 32
"""The share of the time of a loading process in which all samples are compared, rather than two of each batch."""


class Batches(Protocol):
    """Lists of indices, made lazily; the length is their number or an upper bound of it."""

    def __iter__(self) -> Iterator[Sequence[int]]: ...

    def __len__(self) -> int: ...


class IndexedBatch(NamedTuple):
    """A collated batch, and what is known of its samples, where they were read."""

    index: Tensor  # type: ignore[assignment]  # a field, though tuples have a method of that name
    """(B,) their positions in the dataset."""
    batch: Any
    content: npt.NDArray[np.uint64] | None = None
    """(B,) their content hashes."""
    extent: npt.NDArray[np.int64] | None = None
    """(B,) how many numbers each holds."""
    differs: Mapping[str, npt.NDArray[np.bool_]] = {}
    """Which entries of the batch differ from those of samples collated alone: (B,) by name."""
    changed_on_reread: npt.NDArray[np.bool_] | None = None
    """(B,) which samples were read twice and had other content the second time."""
    worker: int | None = None
    """The number of the loader's process that read it, if it has any."""


class BatchPlan:
    """A batch sampler that yields given lists of indices.

    Lightning rebuilds every `BatchSampler`, and every object with ``batch_size`` and ``drop_last``, with its own settings, but
    not objects without these.
    """

    sampler: None = None
    """Lightning 2.5 reads this attribute to find out whether the sampler shuffles."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return (list(batch) for batch in self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class Indexed(Dataset):
    """The samples of a dataset, with their positions."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)


class CollateIndexed:
    """Collate samples with their positions to an `IndexedBatch`.

    With `compare`, samples are read twice, and collated alone as well: all of them while that takes little of the time, else one
    and two of each batch, drawn from its position.
    """

    def __init__(self, dataset: Any, collate_fn: Callable[[list[Any]], Any], *, compare: bool = True) -> None:
        self._dataset = dataset
        self._collate_fn = collate_fn
        self._compare = compare
        self._started: float | None = None
        self._spent = 0.0

    def __call__(self, samples: Sequence[tuple[int, Any]]) -> IndexedBatch:
        indices, values = zip(*samples, strict=True)
        # Before collating, which may change them.
        content = np.array([content_hash(value) for value in values], np.uint64)
        extents = np.array([extent(value) for value in values], np.int64)
        others = [_copied(value) for value in values]
        try:
            batch = collated(self._collate_fn, list(values))
        except (RuntimeError, TypeError) as error:
            if self._collate_fn is not default_collate:
                raise
            raise _needs_collate(self._dataset, indices, error) from None
        worker = get_worker_info()
        found = IndexedBatch(
            torch.tensor(indices), batch, content, extents, worker=None if worker is None else worker.id
        )
        return self._compared(found, others) if self._compare and len(others) > 1 else found

    def _compared(self, found: IndexedBatch, values: list[Any]) -> IndexedBatch:
        now = perf_counter()
        self._started = now if self._started is None else self._started
        size, left = len(values), FREE_SECONDS + SHARE * (now - self._started) - self._spent
        drawn = derive_seed("compare", int(found.index[0]))
        chosen = range(size) if left >= 0 else sorted({drawn % size, drawn // size % size})
        differs: dict[str, npt.NDArray[np.bool_]] = {}
        if self._collate_fn is not default_collate:  # which is known to keep samples apart
            differs = differences(found.batch, self._alone(values, chosen), chosen, size)
        again = self._read_again(found, drawn % size, now + left)
        self._spent += perf_counter() - now
        return found._replace(differs=differs, changed_on_reread=again)

    def _read_again(self, found: IndexedBatch, first: int, until: float) -> npt.NDArray[np.bool_]:
        """Read the sample at position `first` once more, and those after it while there is time; which have other content now, (B,)."""
        assert found.content is not None
        size = len(found.content)
        others = np.zeros(size, bool)
        for position in (number % size for number in range(first, first + size)):
            hashed = content_hash(self._dataset[int(found.index[position])])
            others[position] = changed(int(found.content[position]), hashed)
            if perf_counter() > until:
                break
        return others

    def _alone(self, values: list[Any], chosen: Sequence[int]) -> list[Any]:
        """These samples, each collated alone; None for a sample that cannot be."""
        each = []
        for position in chosen:
            try:
                each.append(collated(self._collate_fn, [values[position]]))
            except Exception:  # refused with its reason when the batch is verified with this sample
                each.append(None)
        return each


def _needs_collate(dataset: Any, indices: Sequence[int], error: Exception) -> DataError:
    differ = "have different sizes" if "equal size" in str(error) else "cannot be stacked"
    return DataError(
        f"samples {listed(indices)} of {type(dataset).__name__} {differ} by default ({error}). Give a DataLoader with the collate_fn of your training, such as DataCollatorWithPadding "
        "of transformers, or the DataLoader of torch_geometric; one with batch_size=None has none."
    )


def collated(collate_fn: Callable[[list[Any]], Any], samples: list[Any]) -> Any:
    """Collate samples into memory of their own: a collate function may fill the same buffer every time, or return the samples."""
    batch = collate_fn(samples)
    return batch if collate_fn is default_collate else snapshot(batch, clone=True)


def _copied(sample: Any) -> Any:
    """A copy of a sample whose entries a collate function may remove without changing the sample."""
    if isinstance(sample, tuple) and not hasattr(sample, "_fields"):
        return tuple(map(_copied, sample))
    return copy.copy(sample) if isinstance(sample, (dict, list)) else sample
