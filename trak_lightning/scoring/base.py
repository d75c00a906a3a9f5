"""The interface of a scorer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import DataError, IncompatibleRunError, IncompleteRunError
from trak_lightning.scoring.compute import LOCAL, Compute
from trak_lightning.stores.base import FeatureSet

Array = npt.NDArray[Any]

BLOCK_BYTES = 2**28
"""How much is worked on at a time: rows of scores, rows of features."""


@dataclass(frozen=True)
class CheckpointFeatures:
    """What is known of one checkpoint."""

    train: FeatureSet
    targets: FeatureSet
    subset: npt.NDArray[np.int64] | None = None
    """Positions of the training samples it was trained on; None if that is not known."""
    cache: Path | None = None
    """Folder for what is computed once (Gram matrix, factors, leverages); None computes it anew each time."""
    compute: Compute = LOCAL
    """Where products are made."""


class Tile(NamedTuple):
    """Scores of some targets for consecutive training samples."""

    scores: Array
    """(b, c)"""
    spread: Callable[[Array, Array], Array] | None = None
    """Standard errors over checkpoints at entries (rows, columns), where the scorer knows them."""


class Scoring(ABC):
    """A fitted scorer: makes the score matrix, tile by tile, so that memory is bounded for any n and m."""

    settings: dict[str, Any]
    """What was chosen from the data (λ of every checkpoint, calibration curve). JSON."""

    compute: Compute = LOCAL

    def __init__(self, checkpoints: Sequence[CheckpointFeatures]) -> None:
        self.compute = checkpoints[0].compute
        self.num_targets = checkpoints[0].targets.spec.num_samples
        self.num_train = checkpoints[0].train.spec.num_samples
        self.settings = {}

    @abstractmethod
    def tiles(self, start: int, stop: int) -> Iterator[Array]:
        """Scores of the targets ``start … stop``: consecutive columns (stop − start, c), which together make all n.

        Positive: having that training example raises the target's model output.
        """

    def columns(self, start: int, stop: int, columns: range) -> Iterator[Tile]:
        """Scores of the targets ``start … stop`` for some training samples, in consecutive tiles.

        A tile is valid until the next one is asked for. Processes that share the work ask for different columns: override
        this if scores of some can be had for less than those of all.
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
        return self.compute.share(self.num_train)

    def rows(self, start: int, stop: int) -> Array:
        """Scores of the targets ``start … stop`` for all training samples, (stop − start, n)."""
        return np.concatenate(list(self.tiles(start, stop)), axis=1)

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[Array]:
        """All rows in order, in blocks of bounded size."""
        step = max(1, block_bytes // (8 * self.num_train))
        for start in range(0, self.num_targets, step):
            yield self.rows(start, min(start + step, self.num_targets))


class Scorer(ABC):
    """A rule that turns features into scores. Public attributes are its settings.

    A scorer of your own needs one method, `fit`. Most are sums of inner products over checkpoints, a few lines each:
    see `trak_lightning.scoring.inner_products`.
    """

    @abstractmethod
    def fit(self, checkpoints: Sequence[CheckpointFeatures]) -> Scoring:
        """Do what is done once for all targets.

        Raises:
            IncompleteRunError: rows are missing.
            IncompatibleRunError: the feature sets do not belong together.
        """

    def rules(self, checkpoints: Sequence[CheckpointFeatures]) -> dict[str, Any]:
        """What the settings leave to rules, such as ``auto``, and what those make of these checkpoints. JSON.

        Beside `state` in the score file: scores that an earlier version made by other rules are computed anew.
        """
        return {}

    @property
    def state(self) -> dict[str, Any]:
        """Settings for the score file: the class and its public attributes, which JSON must be able to hold."""
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}"} | {
            name: value for name, value in vars(self).items() if not name.startswith("_")
        }


def require_compatible(checkpoints: Sequence[CheckpointFeatures]) -> None:
    """Check that every set is complete, that all have the same samples, and that a checkpoint's two sets were made alike.

    Raises:
        IncompleteRunError: no checkpoints, or missing rows.
        IncompatibleRunError: names what differs.
        DataError: more processes than blocks.
    """
    if not checkpoints:
        raise IncompleteRunError("there are no features to score: no checkpoint was featurised")
    first = checkpoints[0]
    for features in checkpoints:
        for found, expected in ((features.train, first.train), (features.targets, first.targets)):
            name = f"{found.spec.split}/{found.spec.checkpoint}"
            if missing := found.missing_blocks():
                raise IncompleteRunError(
                    f"{len(missing)} of {found.spec.num_blocks} blocks of {name} are missing. Run featurize again: it goes on "
                    "where it stopped."
                )
            if found.spec.num_samples != expected.spec.num_samples:
                raise IncompatibleRunError(
                    f"{name} has {found.spec.num_samples} samples, and {expected.spec.split}/{expected.spec.checkpoint} has "
                    f"{expected.spec.num_samples}: they are of different data"
                )
        train, targets = features.train.spec, features.targets.spec
        if features.compute.world_size > train.num_blocks:
            raise DataError(
                f"{features.compute.world_size} processes cannot share the {train.num_blocks} blocks of {train.split}/"
                f"{train.checkpoint}: ask for at most {train.num_blocks} devices, or featurize in smaller blocks"
            )
        for key in ("parameters", "projector", "seed", "precision"):
            if train.fingerprint.get(key) != targets.fingerprint.get(key) or train.dim != targets.dim:
                raise IncompatibleRunError(
                    f"{train.split} and {targets.split} of checkpoint {train.checkpoint} differ in {key}: "
                    f"{train.fingerprint.get(key)} (k = {train.dim}) and {targets.fingerprint.get(key)} (k = {targets.dim})"
                )


def chunks(num_samples: int, row_bytes: int, block_bytes: int = BLOCK_BYTES) -> Iterator[range]:
    """0 … num_samples in consecutive ranges of at most `block_bytes` (and at least one row) each."""
    step = max(1, block_bytes // max(1, row_bytes))
    for start in range(0, num_samples, step):
        yield range(start, min(start + step, num_samples))
