"""Read the user's dataset in order: every sample once, under its own index.

Training loaders shuffle, drop the last batch and oversample, so only their dataset and collate function are used, in a new
loader that reads batches in index order. Whatever would change the set of samples or their content (subset samplers, random
augmentation) raises an error that names it.
"""

import hashlib
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
    default_collate,
)

from trak_lightning.data.columns import WithoutText
from trak_lightning.data.content import content_hash, raw_bytes
from trak_lightning.data.loading import Batches, BatchPlan, CollateIndexed, Indexed, IndexedBatch
from trak_lightning.data.transfer import to_device
from trak_lightning.data.trees import flatten
from trak_lightning.errors import DataError, TrakError, docs_page, require_integer
from trak_lightning.run.formatting import listed

# The samplers that draw from the whole dataset: reading it in order gives the same set of samples.
WHOLE_DATASET_SAMPLERS = (SequentialSampler, RandomSampler, WeightedRandomSampler, DistributedSampler)


@dataclass(frozen=True)
class AttributionData:
    """A dataset, with everything that is needed to load its samples by index."""

    dataset: Any
    collate_fn: Callable[[list[Any]], Any]
    batch_size: int
    num_workers: int = 0
    multiprocessing_context: Any = None
    hooks: Any = None
    """A DataModule whose batch transfer hooks are used, as they were in training, and its names and tokenizer to show samples."""

    @classmethod
    def of(
        cls, source: "Dataset | DataLoader | AttributionData", batch_size: int | None = None, *, hooks: Any = None
    ) -> "AttributionData":
        """Create from a map-style dataset (default batch size 64) or its loader (default batch size of the loader).

        Raises:
            DataError: an iterable dataset, a sampler that restricts the dataset, an empty dataset.
        """
        if isinstance(source, AttributionData):
            return source if hooks is None else replace(source, hooks=hooks)
        if isinstance(source, (str, Path)):
            raise DataError(
                f"the data is {source!r}, a {type(source).__name__}; expected a dataset or a DataLoader, before the name"
            )
        if _holds_columns(source):
            raise DataError(
                f"the data is a {type(source).__name__} of columns, where a dataset of samples or a DataLoader was expected. Give "
                "torch.utils.data.TensorDataset(X, y), with inputs and labels as tensors, one row per sample."
            )
        dataset = source.dataset if isinstance(source, DataLoader) else source
        if isinstance(dataset, IterableDataset) or not (isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")):
            raise DataError(
                f"{type(dataset).__name__} has no length or no indices, so scores could not be assigned to its "
                "samples. Use a map-style dataset: one with __len__ and __getitem__."
            )
        if len(dataset) == 0:
            raise DataError(f"{type(dataset).__name__} is empty: there is nothing to attribute")
        if batch_size is not None:
            batch_size = require_integer("batch_size", batch_size, 1, "a number of samples")
        if not isinstance(source, DataLoader):
            return cls(dataset, default_collate, batch_size or 64, hooks=hooks)
        check_samplers(source)
        # A loader without automatic batching hands out samples, not batches.
        collate = source.collate_fn if source.batch_sampler is not None else default_collate
        return cls(
            dataset,
            WithoutText.wrap(collate),
            batch_size or source.batch_size or 64,
            source.num_workers,
            source.multiprocessing_context,
            hooks,
        )

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def lengths(self) -> npt.NDArray[np.integer[Any]] | None:
        """(n,) how long each sample is, if the dataset says so: whole numbers in its attribute ``lengths``."""
        found = getattr(self.dataset, "lengths", None)
        if not isinstance(found, (Sequence, np.ndarray, Tensor)) or len(found) != len(self):
            return None
        lengths = np.asarray(found)
        return lengths if lengths.ndim == 1 and lengths.dtype.kind in "iu" else None

    def batch(self, indices: Sequence[int]) -> Any:
        """The collated batch of these samples; raises as `read`."""
        return self.read(indices).batch

    def moved(self, indices: Sequence[int], model: nn.Module, device: torch.device) -> Any:
        """As `batch`, moved to a device with the transfer hooks of the DataModule or the model."""
        return to_device(self.read(indices), self.hooks, model, device).batch

    def read(self, indices: Sequence[int]) -> IndexedBatch:
        """The collated batch of these samples, with their content.

        Raises:
            DataError: the dataset or the collate function fails on them.
        """
        try:
            collate = CollateIndexed(self.dataset, self.collate_fn, compare=False)
            return collate([(i, self.dataset[i]) for i in indices])
        except TrakError:
            raise
        except Exception as error:
            raise DataError(
                f"samples {listed(indices)} of {type(self.dataset).__name__} cannot be read and collated without the others: "
                f"{type(error).__name__}: {error}. Every sample needs a row, so a collate function must not drop any: leave "
                "broken samples out of the dataset (torch.utils.data.Subset), and collate batches of one sample too."
            ) from error

    def content(self, position: int) -> int:
        """The content hash of a sample; see `trak_lightning.data.content`."""
        return content_hash(self.dataset[position])

    def fingerprint(self, length: int | None = None) -> str:
        """Hash the first, middle and last sample, each read twice; of the first `length` samples if given.

        Raises:
            DataError: the two readings differ, as under random augmentation.
        """
        length = len(self) if length is None else length
        probes = sorted({0, length // 2, length - 1})
        first, second = ([_digest(self.batch([i])) for i in probes] for _ in range(2))
        for probe, (one, other) in zip(probes, zip(first, second, strict=True), strict=True):
            if one != other:
                raise DataError(
                    f"sample {probe} of {type(self.dataset).__name__} differs each time it is read: random augmentation, or a collate function that draws numbers or "
                    "adds the time? Scores belong to fixed samples. Attribute to the same samples without random transforms. In Python, pass a dataset that has none. With a DataModule, add a method "
                    "plain_dataloader that returns it, and set train_split: plain; models are trained with train_dataloader as before "
                    f"({docs_page('recipes', 'Augmentation, and what retraining uses')})."
                )
        return hashlib.sha256("".join(first).encode()).hexdigest()[:16]

    def digest(self, positions: Sequence[int]) -> str:
        """A hash of these samples."""
        return hashlib.sha256("".join(_digest(self.batch([i])) for i in positions).encode()).hexdigest()[:16]

    def loader(self, batches: Batches, *, pin_memory: bool = False) -> DataLoader:
        """A loader of `IndexedBatch`, one for each list of indices in `batches`."""
        return DataLoader(
            Indexed(self.dataset),
            batch_sampler=BatchPlan(batches),
            collate_fn=CollateIndexed(self.dataset, self.collate_fn),
            num_workers=self.num_workers,
            multiprocessing_context=self.multiprocessing_context,
            pin_memory=pin_memory,
        )


def _holds_columns(source: Any) -> bool:
    """Whether this is a table, or a pair such as (X, y): two or three arrays of as many rows, which are no samples as such."""
    if hasattr(source, "iloc"):
        return True
    if not (isinstance(source, (tuple, list)) and 2 <= len(source) <= 3):
        return False
    shapes = [tuple(getattr(each, "shape", ())) for each in source]
    if not all(shapes) or len({shape[0] for shape in shapes}) > 1:
        return False
    return isinstance(source, tuple) or len(set(shapes)) > 1  # a list of samples of one shape is a dataset


def check_samplers(loader: DataLoader) -> None:
    """Refuse a loader that may leave out or repeat samples of its dataset.

    Raises:
        DataError: names the sampler and the remedy.
    """
    batch_sampler, sampler = loader.batch_sampler, loader.sampler
    if batch_sampler is not None and type(batch_sampler) is not BatchSampler:
        raise DataError(
            f"the loader has a batch sampler of its own, {type(batch_sampler).__name__}, which may leave out or repeat "
            "samples. Give the dataset itself, or a loader with batch_size."
        )
    if not isinstance(sampler, WHOLE_DATASET_SAMPLERS):
        raise DataError(
            f"the loader draws through {type(sampler).__name__}, so its samples may not be those of its dataset. Wrap the "
            "dataset in torch.utils.data.Subset to restrict it, or give the dataset itself."
        )


def _digest(batch: Any) -> str:
    digest = hashlib.sha256()
    for leaf in flatten(batch)[0]:
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided and not (leaf.is_nested or leaf.is_quantized):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(raw_bytes(leaf))
        elif isinstance(leaf, (str, bytes, int, float, bool)):
            digest.update(repr(leaf).encode())
        else:
            digest.update(str(content_hash(leaf)).encode())
    return digest.hexdigest()
