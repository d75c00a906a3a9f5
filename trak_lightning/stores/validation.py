"""Checks that every store makes."""

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from trak_lightning.errors import DataError, IncompleteRunError, NonFiniteGradientError, StorageError
from trak_lightning.stores.base import FeatureRows, FeatureSpec, draw_of

COLUMNS = tuple(field.name for field in fields(FeatureRows))


def require_name(name: str) -> None:
    """Refuse a split or checkpoint that cannot be the name of a folder.

    Raises:
        StorageError: the name is empty, hidden, too long, or leads elsewhere.
    """
    if (
        not isinstance(name, str)
        or not name
        or name.startswith(".")
        or Path(name).name != name
        or "\\" in name
        or not name.isprintable()
        or len(name.encode()) > 200
    ):
        raise StorageError(f"{name!r} cannot name a folder: use letters, digits, '-', '_' and '.'")


def no_such_set(split: str, checkpoint: str, where: Path | str, there: Iterable[tuple[str, str]]) -> IncompleteRunError:
    """The error for a feature set that `FeatureStore.open` does not find; `there` are those that exist."""
    keys = list(there)
    others = sorted({name for name, _ in keys if draw_of(name) is None})
    if split in others:
        found = ", ".join("/".join(key) for key in keys)
        return IncompleteRunError(
            f"there are no features of {split!r} under checkpoint {checkpoint} in {where}; there are {found}. Run trak featurize first, or "
            "TRAK.score in Python."
        )
    if split == "train":
        remedy = "Run trak featurize, or TRAK.featurize in Python, first; or name the training split, --train_split, or split= in Python."
    else:
        remedy = (
            f"Name targets that are there, with --target_split, or name= in Python; or compute these first: trak featurize --target_split {split}, or "
            f'TRAK.score(…, name="{split}") in Python.'
        )
    return IncompleteRunError(
        f"there are no features of {split!r} in {where}; there are {'those of ' + ', '.join(map(repr, others)) if others else 'none'}. {remedy}"
    )


def identity(spec: FeatureSpec) -> dict[str, Any]:
    """The settings that two specs must share to describe one set; batch and block sizes may differ."""
    return {"length of the dataset": spec.num_samples, "dim": spec.dim, **spec.fingerprint}


def require_rows(spec: FeatureSpec, block: int, rows: FeatureRows) -> None:
    """Refuse rows that are not this block of this set.

    Raises:
        DataError: the samples are not those of the block, or a column has another shape.
        NonFiniteGradientError: NaN or infinity; names the samples.
    """
    expected = spec.block_range(block)
    where = f"block {block} of {spec.split}/{spec.checkpoint}"
    if not np.array_equal(rows.index, np.arange(expected.start, expected.stop)):
        raise DataError(
            f"{where} holds samples {expected.start} … {expected.stop - 1} in order, got {len(rows)} rows beginning with "
            f"samples {rows.index[:4].tolist()}"
        )
    for name in COLUMNS:
        values = getattr(rows, name)
        shape = (len(expected), spec.dim) if name == "features" else (len(expected),)
        if values.shape != shape:
            raise DataError(f"{name} of {where} must have shape {shape}, got {values.shape}")
        if name == "content" and values.dtype != np.uint64:
            raise DataError(f"content of {where} must be uint64 hashes, got {values.dtype}")
        finite = np.isfinite(values).reshape(len(expected), -1).all(axis=1)
        if not finite.all():
            raise NonFiniteGradientError(
                f"NaN or infinity in the {name} of samples {rows.index[~finite][:10].tolist()}; nothing of {where} was stored"
            )
