"""Collate samples with text columns, on which the data collators of transformers fail."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from numbers import Number
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

Collate: TypeAlias = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class WithoutText:
    """Wrap a data collator of transformers: if it fails on samples, call it again without their text columns.

    The Trainer of transformers removes the columns that its model does not accept before it collates. Here, numeric columns
    stay, and the task passes those that the model accepts.
    """

    collate_fn: Collate

    @classmethod
    def wrap(cls, collate_fn: Collate) -> Collate:
        """Wrap a collator of transformers or a subclass of one. Return any other function unchanged: it may need the
        text."""
        classes = type(collate_fn).__mro__
        return cls(collate_fn) if any(each.__module__.startswith("transformers.") for each in classes) else collate_fn

    @property
    def tokenizer(self) -> Any:
        """The collator's tokenizer, with which a report shows token ids as text."""
        return getattr(self.collate_fn, "tokenizer", None)

    def __call__(self, samples: list[Any]) -> Any:
        try:
            return self.collate_fn(samples)
        except Exception:
            numeric = [_numeric(sample) for sample in samples]
            if all(kept is sample for kept, sample in zip(numeric, samples, strict=True)):
                raise
            with suppress(Exception):  # the first error says more
                return self.collate_fn(numeric)
            raise


def _numeric(sample: Any) -> Any:
    """The sample without columns that cannot become tensors; the sample itself if it has none."""
    if not isinstance(sample, Mapping):
        return sample
    kept = {name: value for name, value in sample.items() if _is_numeric(value)}
    return sample if len(kept) == len(sample) else kept


def _is_numeric(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_numeric, value))
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    return isinstance(value, (Tensor, Number, np.generic))
