"""What every store demands of the rows it is given."""

from typing import Any

import numpy as np

from trak_lightning.errors import DataError, NonFiniteGradientError
from trak_lightning.stores.base import FeatureRows, FeatureSpec

COLUMNS = ("features", "index", "output", "loss_weight", "curvature")
"""The parts of `FeatureRows`, in the order in which files hold them."""


def identity(spec: FeatureSpec) -> dict[str, Any]:
    """What two specs must agree on to be of one set; batches and blocks are not part of it."""
    return {"length of the dataset": spec.num_samples, "dim": spec.dim, **spec.fingerprint}


def require_rows(spec: FeatureSpec, block: int, rows: FeatureRows) -> None:
    """Refuse rows that are not this block of this set.

    Raises:
        DataError: other samples than the block's, or other shapes.
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
        finite = np.isfinite(values).reshape(len(expected), -1).all(axis=1)
        if not finite.all():
            raise NonFiniteGradientError(
                f"NaN or infinity in the {name} of samples {rows.index[~finite][:10].tolist()}; nothing of {where} was stored"
            )
