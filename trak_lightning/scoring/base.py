"""The interface of a scorer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import DataError, IncompatibleRunError, IncompleteRunError
from trak_lightning.registry import recorded
from trak_lightning.run.arrays import Array as Array  # for scorers
from trak_lightning.run.same_settings import current
from trak_lightning.scoring.backend import LOCAL, Backend
from trak_lightning.stores.base import FeatureSet
from trak_lightning.stores.validation import identity

BLOCK_BYTES = 2**28
"""Bytes of scores or features that are processed at a time."""


@dataclass(frozen=True)
class CheckpointFeatures:
    """The feature sets of one checkpoint, and what is known of the checkpoint."""

    train: FeatureSet
    targets: FeatureSet
    subset: npt.NDArray[np.int64] | None = None
    """Positions of the training samples that it was trained on; None if unknown."""
    cache: Path | None = None
    """Folder for what is computed once (Gram matrix, factors, leverages); with None, it is computed every time."""
    backend: Backend = LOCAL
    """Where matrix products are computed."""
    with_drawn: FeatureSet | None = None
    """The training rows and those with drawn labels, `trak_lightning.scoring.views.with_drawn`; None if there are no such rows."""

    @property
    def gram_rows(self) -> FeatureSet:
        """The rows that the Gram matrix is made of."""
        return self.with_drawn or self.train

    @cached_property
    def gram_identity(self) -> dict[str, Any]:
        """The settings that `gram_rows` were made with, and a hash of what is stored. JSON values."""
        return {**identity(self.gram_rows.spec), "rows": self.gram_rows.digest()}


class Tile(NamedTuple):
    """Scores of some targets for consecutive training samples."""

    scores: Array
    """(b, c)"""
    spread: Callable[[Array, Array], Array] | None = None
    """Returns the standard errors over checkpoints at entries (rows, columns); None if the scorer does not know them."""


class Scoring(ABC):
    """A fitted scorer. It computes the score matrix tile by tile, so that memory is bounded for any n and m."""

    settings: dict[str, Any]
    """What was chosen from the data (λ of every checkpoint, calibration curve). JSON values."""

    backend: Backend = LOCAL
    target_bytes: int = 1
    """Bytes of one target's features under all checkpoints, in float64."""

    def __init__(self, checkpoints: Sequence[CheckpointFeatures]) -> None:
        self.backend = checkpoints[0].backend
        self.num_targets = checkpoints[0].targets.spec.num_samples
        self.num_train = checkpoints[0].train.spec.num_samples
        self.target_bytes = sum(8 * features.targets.spec.dim for features in checkpoints)
        self.settings = {}

    @abstractmethod
    def tiles(self, start: int, stop: int) -> Iterator[Array]:
        """Yield the scores of the targets ``start … stop``: consecutive columns (stop − start, c), n of them in total.

        A positive score means that having that training sample raises the target's model output.
        """

    def columns(self, start: int, stop: int, columns: range) -> Iterator[Tile]:
        """Yield the scores of the targets ``start … stop`` for some training samples, in consecutive tiles.

        A tile is valid until the next one is requested. Processes that share the work request different columns: override
        this if computing some of the scores costs less than computing all of them.
        """
        first = 0
        for scores in self.tiles(start, stop):
            inside = slice(max(columns.start - first, 0), max(columns.stop - first, 0))
            first += scores.shape[1]
            if scores[:, inside].shape[1]:
                yield Tile(scores[:, inside])

    @property
    def share(self) -> range:
        """The training samples whose scores this process computes, where several share the work."""
        return self.backend.share(self.num_train)

    def rows(self, start: int, stop: int) -> Array:
        """Return the scores of the targets ``start … stop`` for all training samples, (stop − start, n)."""
        return np.concatenate(list(self.tiles(start, stop)), axis=1)

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[Array]:
        """Yield all rows in order, in blocks of bounded size."""
        step = max(1, block_bytes // max(8 * self.num_train, self.target_bytes))
        for start in range(0, self.num_targets, step):
            yield self.rows(start, min(start + step, self.num_targets))


class Scorer(ABC):
    """A rule that turns features into scores. Its public attributes are its settings.

    A scorer of your own needs one method, `fit`. Most scorers are sums of inner products over checkpoints and take a few
    lines: see `trak_lightning.scoring.inner_products`.
    """

    @abstractmethod
    def fit(self, checkpoints: Sequence[CheckpointFeatures]) -> Scoring:
        """Do the work that is shared by all targets.

        Raises:
            IncompleteRunError: rows are missing.
            IncompatibleRunError: the feature sets do not belong together.
        """

    def rules(self, checkpoints: Sequence[CheckpointFeatures]) -> dict[str, Any]:
        """Return the constants behind settings such as ``auto``. JSON values.

        They are stored next to `state` in the score file: if a later version changes a rule, scores are computed again.
        """
        return {}

    @property
    def state(self) -> dict[str, Any]:
        """Settings for the score file: the class and its public attributes, which must be JSON values."""
        return recorded(self)


def require_compatible(checkpoints: Sequence[CheckpointFeatures]) -> None:
    """Check that every set is complete, that all have the same samples, and that both sets of a checkpoint match.

    Raises:
        IncompleteRunError: no checkpoints, or missing rows.
        IncompatibleRunError: the sets do not match; names what differs.
        DataError: there are more processes than blocks.
    """
    if not checkpoints:
        raise IncompleteRunError("there are no features to score: no checkpoint was featurized")
    first = checkpoints[0]
    for features in checkpoints:
        sets = (features.train, first.train), (features.targets, first.targets), (features.gram_rows, first.gram_rows)
        for found, expected in sets:
            name = f"{found.spec.split}/{found.spec.checkpoint}"
            if missing := found.missing_blocks():
                raise IncompleteRunError(
                    f"{len(missing)} of {found.spec.num_blocks} blocks of {name} are missing. Run featurize again: it resumes "
                    "where it stopped."
                )
            if found.spec.num_samples != expected.spec.num_samples:
                raise IncompatibleRunError(
                    f"{name} has {found.spec.num_samples} samples, and {expected.spec.split}/{expected.spec.checkpoint} has "
                    f"{expected.spec.num_samples}: they belong to different data"
                )
        train, targets = features.train.spec, features.targets.spec
        if features.backend.world_size > train.num_blocks:
            raise DataError(
                f"{features.backend.world_size} processes cannot share the {train.num_blocks} blocks of {train.split}/"
                f"{train.checkpoint}: use at most {train.num_blocks} devices, or featurize in smaller blocks"
            )
        for key in ("parameters", "projector", "seed", "precision"):
            if current(train.fingerprint.get(key)) != current(targets.fingerprint.get(key)) or train.dim != targets.dim:
                raise IncompatibleRunError(
                    f"{train.split} and {targets.split} of checkpoint {train.checkpoint} differ in {key}: "
                    f"{train.fingerprint.get(key)} (k = {train.dim}) and {targets.fingerprint.get(key)} (k = {targets.dim})"
                )


def evenly(size: int, count: int) -> npt.NDArray[np.int64]:
    """Return at most `count` of the positions 0 … size − 1, spread evenly, ascending."""
    return np.unique(np.linspace(0, max(size - 1, 0), min(count, size)).astype(np.int64))


def chunks(num_samples: int, row_bytes: int, block_bytes: int = BLOCK_BYTES) -> Iterator[range]:
    """Cut 0 … num_samples into consecutive ranges of at most `block_bytes`, and at least one row, each."""
    step = max(1, block_bytes // max(1, row_bytes))
    for start in range(0, num_samples, step):
        yield range(start, min(start + step, num_samples))
