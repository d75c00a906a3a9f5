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

_MANY = ("extent", "zero")
"""Of batches whose samples differ in size, or have gradients of zero, the first, second, fourth … are, since there are many."""

_VALUES = 4096
"""How many different values of an entry are remembered."""


class Unusual:
    """Find the samples for which a batch should be verified.

    1. Entries of the batch differ from those of the sample collated alone: it was reordered, replaced or changed.
    2. An entry that is one integer per sample, such as a label, has a value that no earlier batch had: the model may take
       another branch.
    3. Samples differ in size, and one is smaller than another: it was padded, cut or sorted.
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
        return self._count[key].bit_count() == 1 or (key not in _MANY and self._count[key] <= _EACH)

    def _ways(self, batch: SampleBatch) -> list[tuple[Hashable, Positions]]:
        return [
            (frozenset(batch.differs), self._differing(batch)),
            *((("values", place), where) for place, where in self._new_values(batch)),
            ("extent", _smaller(batch)),
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
            if not _one_integer_each(leaf, batch.size) or len(self._values.get(place, ())) > _VALUES:
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


def _one_integer_each(leaf: object, size: int) -> bool:
    integral = isinstance(leaf, Tensor) and not (leaf.is_floating_point() or leaf.is_complex())
    return integral and not leaf.is_nested and leaf.layout == torch.strided and leaf.numel() == size  # type: ignore[attr-defined]


def _smaller(batch: SampleBatch) -> Positions:
    """The positions of the samples that hold fewer numbers than the largest of the batch."""
    return np.flatnonzero([] if batch.extent is None else batch.extent < batch.extent.max())
