"""Attributing groups of targets: scores are linear in the target's features, so a group is a target of its own."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import DataError
from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.scoring.views import FeatureView
from trak_lightning.seeds import fingerprint
from trak_lightning.stores.base import FeatureRows

Reduction: TypeAlias = Literal["mean", "sum"]


@dataclass(frozen=True)
class _Groups(FeatureView):
    """One row a group: the mean or sum of its targets' rows."""

    labels: Array
    reduction: str

    def read_block(self, block: int) -> FeatureRows:
        inside = self.spec.block_range(block)
        piece = slice(inside.start, inside.stop)
        rows = self._rows
        return FeatureRows(
            np.arange(inside.start, inside.stop),
            *[getattr(rows, name)[piece] for name in ("features", "output", "loss_weight", "curvature")],
        )

    @cached_property
    def _rows(self) -> FeatureRows:
        names, counts = np.unique(self.labels, return_counts=True)
        totals = {
            name: np.zeros((len(names), self.spec.dim) if name == "features" else len(names))
            for name in ("features", "output", "loss_weight", "curvature")
        }
        for rows in self.source.blocks():
            position = np.searchsorted(names, self.labels[rows.index])
            for name, total in totals.items():
                np.add.at(total, position, getattr(rows, name).astype(np.float64))
        if self.reduction == "mean":
            for total in totals.values():
                total /= counts.reshape(-1, *[1] * (total.ndim - 1))
        return FeatureRows(np.arange(len(names)), **totals)


def group_targets(
    features: CheckpointFeatures, labels: npt.ArrayLike, reduction: Reduction = "mean"
) -> CheckpointFeatures:
    """The same checkpoint with one target a group, in ascending order of the labels.

    Args:
        features: of one checkpoint.
        labels: (m,) integers, the group of every target.
        reduction: the group's model output is the ``mean`` or the ``sum`` of its members'.

    Raises:
        DataError: labels of another number or kind than targets.
    """
    found = np.asarray(labels)
    m = features.targets.spec.num_samples
    if found.shape != (m,) or found.dtype.kind not in "iu":
        raise DataError(f"groups must be {m} integers, one a target; got {found.dtype} of shape {found.shape}")
    if reduction not in get_args(Reduction):
        raise DataError(f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}")
    spec = features.targets.spec
    grouped = replace(
        spec,
        num_samples=len(np.unique(found)),
        fingerprint={**spec.fingerprint, "groups": fingerprint(found.tolist()), "reduction": reduction},
    )
    return replace(features, targets=_Groups(features.targets, grouped, found, reduction))
