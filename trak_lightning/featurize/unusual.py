"""Notice batches that differ from earlier ones in the values of their samples."""

from collections import Counter
from collections.abc import Hashable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trak_lightning.data.samples import SampleBatch
from trak_lightning.data.trees import deep_leaves

Positions = npt.NDArray[np.intp]

_EACH = 8
"""How many batches that are unusual in one way are verified before only the 16th, 32nd, 64th … are."""

_MANY = ("extent", "gaps", "zero")
"""Of batches whose samples differ in size or padding, or have gradients of zero, the first, second, fourth … are, since there are many."""

_VALUES = 4096
"""How many different values of an entry are remembered."""


class Unusual:
    """Find the samples for which a batch should be verified.

    1. Entries of the batch differ from those of the sample collated alone: it was reordered, replaced or changed.
    2. An entry that is one number per sample, such as a label or a weight, has a value that no earlier batch had: the model may take
       another branch.
    3. Samples differ in size, and one is smaller than another: it was padded, cut or sorted.
    4. Samples are of the same size, and differ in how much of a mask or of a sequence is padding: the loss may divide by a number that
       it takes from the batch.
    """

    def __init__(self) -> None:
        self._count: Counter[Hashable] = Counter()
        self._differed: set[str] = set()
        self._values: dict[int, set[int]] = {}

    def samples(self, batch: SampleBatch) -> Positions:
        """The positions of the samples, one of which should be computed alone; none if the batch is like earlier ones."""
        found = [(key, where) for key, where in self._ways(batch) if len(where)]
        due = [where for key, where in found if self.is_due(key)]
        return due[0] if due else np.zeros(0, np.intp)

    def is_due(self, key: Hashable) -> bool:
        """Count a batch that is unusual in this way; whether it should be verified."""
        self._count[key] += 1
        many = key in _MANY or (isinstance(key, tuple) and key[0] in _MANY)
        return self._count[key].bit_count() == 1 or (not many and self._count[key] <= _EACH)

    def _ways(self, batch: SampleBatch) -> list[tuple[Hashable, Positions]]:
        return [
            (frozenset(batch.differs), self._differing(batch)),
            *((("values", place), where) for place, where in self._new_values(batch)),
            ("extent", _smaller(batch)),
            *((("gaps", *key), where) for key, where in _padded(batch)),
        ]

    def _differing(self, batch: SampleBatch) -> Positions:
        names = batch.differs.keys() - self._differed or batch.differs.keys()
        self._differed |= names
        return (
            np.flatnonzero(np.any([batch.differs[name] for name in names], axis=0)) if names else np.zeros(0, np.intp)
        )

    def _new_values(self, batch: SampleBatch) -> list[tuple[int, Positions]]:
        found = []
        for place, leaf in enumerate(deep_leaves(batch.collated)):
            if not _one_number_each(leaf, batch.size) or len(self._values.get(place, ())) > _VALUES:
                continue
            values = leaf.flatten().tolist()
            known = self._values.setdefault(place, set())
            new = set(values) - known
            if (
                known and 0 < len(new) < batch.size
            ):  # the first batch is of a new kind; numbers of samples are always new
                found.append((place, np.flatnonzero([value in new for value in values])))
            known |= new
        return found


def _one_number_each(leaf: object, size: int) -> bool:
    return _is_plain(leaf) and leaf.numel() == size  # type: ignore[attr-defined]


def _is_plain(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and not (leaf.is_complex() or leaf.is_nested) and leaf.layout == torch.strided


def _padded(batch: SampleBatch) -> list[tuple[tuple[int, str], Positions]]:
    """For every mask and sequence, the samples with fewer entries that are not zero, and that are not negative (labels such as −100),
    than another sample of the batch."""
    found = []
    for place, leaf in enumerate(deep_leaves(batch.collated)):
        if _is_plain(leaf) and leaf.ndim > 1 and len(leaf) == batch.size:
            for kind, held in _held(leaf).items():
                count = held.flatten(1).sum(1).cpu().numpy()
                found.append(((place, kind), np.flatnonzero(count < count.max())))
    return found


def _held(leaf: Tensor) -> dict[str, Tensor]:
    """Which entries of a mask, of a sequence of integers, (B, T), or of vectors, (B, T, d), are no padding, by what padding would be."""
    if (leaf.ndim == 2 and not leaf.is_floating_point()) or _is_mask(leaf):
        return {"zero": leaf != 0, "negative": leaf >= 0}
    return {"zero": (leaf != 0).any(-1)} if leaf.ndim == 3 else {}


def _is_mask(leaf: Tensor) -> bool:
    first = leaf[0].flatten()[:16]
    return all(bool(((part == 0) | (part == 1)).all()) for part in (first, leaf))


def _smaller(batch: SampleBatch) -> Positions:
    """The positions of the samples that hold fewer numbers than the largest of the batch."""
    return np.flatnonzero([] if batch.extent is None else batch.extent < batch.extent.max())
