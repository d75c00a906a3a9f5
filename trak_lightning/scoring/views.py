"""Feature sets that are computed from other feature sets as they are read: unit length, some of the targets, groups.

Scorers need not know of them: a view is a `FeatureSet` like any other.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import DataError, IncompatibleRunError, StorageError, require_option
from trak_lightning.scoring.base import Array, CheckpointFeatures
from trak_lightning.scoring.gradient_scorers import unit_rows
from trak_lightning.scoring.rows import as_computed
from trak_lightning.seeds import fingerprint
from trak_lightning.stores.base import FeatureRows, FeatureSet, FeatureSpec, FeatureStore, concatenate, drawn_split

Reduction: TypeAlias = Literal["mean", "sum"]


@dataclass(frozen=True)
class FeatureView(FeatureSet):
    """A read-only feature set computed from another one. Subclasses define `read_block`."""

    source: FeatureSet
    spec: FeatureSpec

    def write_block(self, block: int, rows: FeatureRows) -> None:
        raise StorageError(f"{type(self).__name__} is computed from {self.source.spec.split} and cannot be written")

    def missing_blocks(self) -> list[int]:
        return self.source.missing_blocks()

    def digest(self) -> str:
        return self.source.digest()


def with_drawn(train: FeatureSet, store: FeatureStore) -> FeatureSet | None:
    """Return the training rows, W^½Φ, followed in each block by those with drawn labels, so that the Gram matrix is ``ΦᵀWΦ + F``.

    F is the mean over the draws of ``Σ_i ψ_i ψ_iᵀ`` with gradients ψ of log p. None if no such rows are stored.

    Raises:
        IncompatibleRunError: they are those of other samples, or in other blocks.
    """
    spec = train.spec
    sets: list[FeatureSet] = []
    stored = store.list()
    while (name := (drawn_split(spec.split, len(sets) + 1), spec.checkpoint)) in stored:
        sets.append(store.open(*name))
    for found in sets:
        for key in ("num_samples", "block_size", "dim"):
            ours, theirs = getattr(spec, key), getattr(found.spec, key)
            if ours != theirs:
                raise IncompatibleRunError(
                    f"{found.spec.split}/{spec.checkpoint} has {key} {theirs}, and {spec.split}/{spec.checkpoint} has {ours}. Featurize "
                    f"with the same curvature_draws as before, or delete the features of {found.spec.split}."
                )
    if not sets:
        return None
    count = 1 + len(sets)
    whole = replace(
        _respecified(spec, drawn=[found.spec.fingerprint for found in sets]),
        split=f"{spec.split} and its draws",
        num_samples=count * spec.num_samples,
        block_size=count * spec.block_size,
    )
    return _WithDrawn(train, whole, tuple(sets))


@dataclass(frozen=True)
class _WithDrawn(FeatureView):
    drawn: tuple[FeatureSet, ...]

    def read_block(self, block: int) -> FeatureRows:
        own = self.source.read_block(block)
        parts = [replace(own, features=as_computed(own.features))]
        for found in self.drawn:
            rows = found.read_block(block)
            ones = np.ones(len(rows), rows.loss_weight.dtype)  # so that every weighting gives 1
            scaled = as_computed(rows.features) / np.float32(np.sqrt(len(self.drawn)))
            parts.append(replace(rows, features=scaled, loss_weight=ones, curvature=ones))
        samples = self.spec.block_range(block)
        return replace(concatenate(parts), index=np.arange(samples.start, samples.stop))

    def missing_blocks(self) -> list[int]:
        return sorted({block for found in (self.source, *self.drawn) for block in found.missing_blocks()})

    def digest(self) -> str:
        return fingerprint([found.digest() for found in (self.source, *self.drawn)])


def unit_norm(features: CheckpointFeatures) -> CheckpointFeatures:
    """Return the same checkpoint with features φ/‖φ‖; rows of zeros stay zero, and rows with drawn labels are left out."""
    train, targets = (
        _UnitNorm(source, _respecified(source.spec, normalize="unit")) for source in (features.train, features.targets)
    )
    return replace(features, train=train, targets=targets, with_drawn=None)


def some_targets(features: CheckpointFeatures, positions: Array) -> CheckpointFeatures:
    """Return the same checkpoint with only the targets at `positions` (t,), in that order.

    They form one block, so that they are scored in one pass over the training features.
    """
    spec = _respecified(features.targets.spec, positions=fingerprint(positions.tolist()))
    spec = replace(spec, num_samples=len(positions), block_size=len(positions))
    return replace(features, targets=_Some(features.targets, spec, positions))


def group_targets(
    features: CheckpointFeatures,
    labels: npt.ArrayLike,
    reduction: Reduction = "mean",
    coefficients: npt.ArrayLike | None = None,
) -> CheckpointFeatures:
    """Return the same checkpoint with one target per group, in ascending order of the labels.

    Scores are linear in the target's features, so a group of targets is itself a target, and so is a difference of two.

    Args:
        features: of one checkpoint.
        labels: (m,) integers, the group of every target.
        reduction: the group's model output is the ``mean`` or the ``sum`` of its members'.
        coefficients: (m,) numbers that outputs are multiplied by first; 1 if None.

    Raises:
        DataError: the labels are not m integers, or the coefficients not m numbers.
        SettingsError: there is no such reduction.
    """
    found = np.asarray(labels)
    m = features.targets.spec.num_samples
    if found.shape != (m,) or found.dtype.kind not in "iu":
        raise DataError(f"groups must be {m} integers, one per target; got {found.dtype} of shape {found.shape}")
    require_option("reduction", reduction, get_args(Reduction))
    factors = np.ones(m) if coefficients is None else np.asarray(coefficients)
    if factors.shape != (m,) or factors.dtype.kind not in "iuf" or not np.isfinite(factors).all():
        raise DataError(
            f"coefficients must be {m} numbers, one per target; got {factors.dtype} of shape {factors.shape}"
        )
    changes = {} if coefficients is None else {"coefficients": fingerprint(factors.tolist())}
    spec = _respecified(features.targets.spec, groups=fingerprint(found.tolist()), reduction=reduction, **changes)
    spec = replace(spec, num_samples=len(np.unique(found)))
    return replace(features, targets=_Groups(features.targets, spec, found, reduction, factors))


def _respecified(spec: FeatureSpec, **changes: Any) -> FeatureSpec:
    """The spec of a view: what was done to the rows is part of what determines them."""
    return replace(spec, fingerprint={**spec.fingerprint, **changes})


@dataclass(frozen=True)
class _UnitNorm(FeatureView):
    def read_block(self, block: int) -> FeatureRows:
        rows = self.source.read_block(block)
        return replace(rows, features=unit_rows(rows.features).astype(rows.features.dtype))


@dataclass(frozen=True)
class _Some(FeatureView):
    """The rows at some positions, in one block."""

    positions: Array

    def read_block(self, block: int) -> FeatureRows:
        order = np.argsort(self.positions, kind="stable")
        size = self.source.spec.block_size
        blocks, starts = np.unique(self.positions[order] // size, return_index=True)
        found = []
        for number, members in zip(blocks, np.split(order, starts[1:]), strict=True):
            rows = self.source.read_block(int(number))  # once, however many of its rows are wanted
            found.append(rows.at(self.positions[members] - number * size))
        rows = concatenate(found).at(np.argsort(order, kind="stable"))
        return replace(rows, index=np.arange(len(rows)))


@dataclass(frozen=True)
class _Groups(FeatureView):
    """One row per group: the mean or sum of its targets' rows."""

    labels: Array
    reduction: str
    coefficients: Array

    def read_block(self, block: int) -> FeatureRows:
        inside = self.spec.block_range(block)
        return self._rows[inside.start : inside.stop]

    @cached_property
    def _rows(self) -> FeatureRows:
        names, counts = np.unique(self.labels, return_counts=True)
        totals: dict[str, Array] = {}
        for rows in self.source.blocks():
            position = np.searchsorted(names, self.labels[rows.index])
            for name in (field.name for field in fields(rows) if field.name != "index"):
                values = getattr(rows, name)
                # A group's content is the sum of its members' hashes, modulo 2⁶⁴.
                values = values if values.dtype.kind == "u" else (values.T * self.coefficients[rows.index]).T
                total = totals.setdefault(name, np.zeros((len(names), *values.shape[1:]), values.dtype))
                np.add.at(total, position, values)
        if self.reduction == "mean":
            for total in totals.values():
                if total.dtype.kind == "f":
                    total /= counts.reshape(-1, *[1] * (total.ndim - 1))
        return FeatureRows(np.arange(len(names)), **totals)
