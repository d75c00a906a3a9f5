"""The interface of a scorer."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from trak_lightning.errors import IncompatibleRunError, IncompleteRunError
from trak_lightning.stores.base import FeatureRows, FeatureSet

Array = npt.NDArray[Any]

BLOCK_BYTES = 2**28
"""How much of the (m, n) score matrix is computed at a time."""


@dataclass(frozen=True)
class CheckpointFeatures:
    """What is known of one checkpoint."""

    train: FeatureSet
    targets: FeatureSet
    subset: npt.NDArray[np.int64] | None = None
    """Positions of the training samples it was trained on; None if that is not known."""


class Scoring(ABC):
    """A fitted scorer: makes the score matrix, row block by row block."""

    settings: dict[str, Any]
    """What was chosen from the data (λ of every checkpoint, calibration curve). JSON."""

    def __init__(self, checkpoints: Sequence[CheckpointFeatures]) -> None:
        self.num_targets = checkpoints[0].targets.spec.num_samples
        self.num_train = checkpoints[0].train.spec.num_samples
        self.settings = {}

    @abstractmethod
    def rows(self, start: int, stop: int) -> Array:
        """Scores of the targets ``start … stop`` for all training samples, (stop − start, n).

        Positive: having that training example raises the target's model output.
        """

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[Array]:
        """All rows in order, in blocks of bounded size."""
        step = max(1, block_bytes // (8 * self.num_train))
        for start in range(0, self.num_targets, step):
            yield self.rows(start, min(start + step, self.num_targets))


class Scorer(ABC):
    """A rule that turns features into scores. Public attributes are its settings.

    A scorer of your own needs one method, `fit`; the `Scoring` that it returns needs one, `rows`.
    """

    @abstractmethod
    def fit(self, checkpoints: Sequence[CheckpointFeatures]) -> Scoring:
        """Do what is done once for all targets.

        Raises:
            IncompleteRunError: rows are missing.
            IncompatibleRunError: the feature sets do not belong together.
        """

    @property
    def state(self) -> dict[str, Any]:
        """Settings for the score file: the class and its public attributes, which JSON must be able to hold."""
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}"} | {
            name: value for name, value in vars(self).items() if not name.startswith("_")
        }


@dataclass(frozen=True)
class Problem:
    """Feature sets that were checked to be complete and to belong together."""

    checkpoints: tuple[CheckpointFeatures, ...]
    loss_weight: Array = field(init=False)
    """Q̄ (n,): q of every training sample, averaged over checkpoints (Park et al. 2023, section 3.3)."""

    def __post_init__(self) -> None:
        require_compatible(self.checkpoints)
        columns = [features.train.column("loss_weight").astype(np.float64) for features in self.checkpoints]
        object.__setattr__(self, "loss_weight", np.mean(columns, axis=0))


def require_compatible(checkpoints: Sequence[CheckpointFeatures]) -> None:
    """Check that every set is complete, that all have the same samples, and that a checkpoint's two sets were made alike.

    Raises:
        IncompleteRunError: no checkpoints, or missing rows.
        IncompatibleRunError: names what differs.
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
        for key in ("parameters", "projector", "seed", "precision"):
            if train.fingerprint.get(key) != targets.fingerprint.get(key) or train.dim != targets.dim:
                raise IncompatibleRunError(
                    f"{train.split} and {targets.split} of checkpoint {train.checkpoint} differ in {key}: "
                    f"{train.fingerprint.get(key)} (k = {train.dim}) and {targets.fingerprint.get(key)} (k = {targets.dim})"
                )


def read_rows(features: FeatureSet, start: int, stop: int) -> Array:
    """Features (stop − start, k) of consecutive samples."""
    size = features.spec.block_size
    parts = []
    for block in range(start // size, -(-stop // size)):
        rows = features.read_block(block).features
        parts.append(rows[max(start - block * size, 0) : stop - block * size])
    return np.concatenate(parts)


def weighting(rows: FeatureRows, weights: str) -> Array:
    """W of the Gram matrix ΦᵀWΦ, one weight a row, float64 (b,)."""
    choices = {
        "none": lambda: np.ones(len(rows)),
        "residual": lambda: np.abs(rows.loss_weight.astype(np.float64)),
        "gauss_newton": lambda: rows.curvature.astype(np.float64),
        "fisher": lambda: rows.loss_weight.astype(np.float64) ** 2,
    }
    return choices[weights]()


Weights: TypeAlias = Literal["none", "residual", "gauss_newton", "fisher"]
WEIGHTS = get_args(Weights)
