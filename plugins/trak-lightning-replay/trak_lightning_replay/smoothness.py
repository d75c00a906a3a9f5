"""Does the derivative say what happens when samples are left out?"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trak_lightning.authoring import derive_seed, mean_spearman
from trak_lightning.errors import DataError

ENOUGH = 0.5
"""The smallest explained share of differences with which scores are accepted."""


@dataclass(frozen=True)
class Smoothness:
    """Changes of outputs that scores predict, and those of trainings without the samples."""

    predicted: npt.NDArray[np.float64]
    """(trainings, m)"""
    actual: npt.NDArray[np.float64]
    """(trainings, m)"""
    removed: float
    """The share of the training samples that each training left out."""

    def __repr__(self) -> str:
        trainings, m = self.actual.shape
        return (
            f"Smoothness(explained={self.explained:.3f}, explained_differences={self.explained_differences:.3f}): {m} outputs, "
            f"{trainings} trainings without {self.removed:.1%} of the samples"
        )

    @property
    def explained(self) -> float:
        """1 − Σ(predicted − actual)² / Σ actual²: 1 for a perfect prediction, 0 for one that is no better than 'nothing
        changes'."""
        return _explained(self.predicted, self.actual)

    @property
    def explained_differences(self) -> float:
        """As `explained`, of what distinguishes the trainings: predicted and actual changes of each output without their mean.

        Any removal also has effects of second order, which all removals of a size have in common. In the mean of many targets, where effects of
        first order cancel, they are as large as these, although the order of the trainings is predicted.
        """
        return _explained(self.predicted - self.predicted.mean(0), self.actual - self.actual.mean(0))

    @property
    def shift(self) -> npt.NDArray[np.float64]:
        """What a removal of this size changes more than was predicted, on average over the trainings: (m,)."""
        return np.asarray((self.actual - self.predicted).mean(0))

    @property
    def correlation(self) -> float:
        """Pearson's correlation of all predicted and actual changes."""
        return float(np.corrcoef(self.predicted.ravel(), self.actual.ravel())[0, 1])

    @property
    def lds(self) -> float:
        """The linear datamodeling score at a fixed seed: the rank correlation over trainings, as a mean over outputs. It needs
        dozens of trainings."""
        return mean_spearman(self.predicted, self.actual)

    @property
    def settings(self) -> dict[str, Any]:
        """For the score file."""
        return {
            "explained": self.explained,
            "explained_differences": self.explained_differences,
            "trainings": len(self.actual),
            "removed": self.removed,
        }

    def require(self) -> None:
        """Refuse scores that do not predict.

        Raises:
            DataError: says how far off they are, and what helps.
        """
        found = self.explained_differences
        if not found >= ENOUGH:
            raise DataError(
                f"the derivative through this run does not say what happens without samples: over {len(self.actual)} trainings without "
                f"{self.removed:.0%} of them, it explains {found:.2f} of the differences between their outputs (at least {ENOUGH} is "
                "asked for; 1 is perfect). The run is not smooth enough. A larger eps of Adam (1e-3), a smaller learning rate, larger "
                "batches and fewer epochs help; or use scorer trak. check=8 decides more surely about few outputs; check=0 computes the scores all the same; smoothness(removed=…) "
                "says whether they are right for smaller sets."
            )


def _explained(predicted: npt.NDArray[np.float64], actual: npt.NDArray[np.float64]) -> float:
    total = float((actual**2).sum())
    return 1 - float(((predicted - actual) ** 2).sum()) / total if total else 1.0


def drawn_subsets(n: int, count: int, removed: float, seed: int) -> npt.NDArray[np.float64]:
    """Draw weights (count, n) that are 0 at a share of `removed` of the samples, and 1 elsewhere.

    Raises:
        DataError: the share leaves out no sample, or all.
    """
    size = round(removed * n)
    if not 0 < size < n:
        raise DataError(
            f"removed={removed} of {n} samples leaves out {size}; choose a share that leaves out some, not all"
        )
    weights = np.ones((count, n))
    for row, each in enumerate(weights):
        generator = np.random.Generator(np.random.Philox(derive_seed(seed, "removed", row)))
        each[generator.permutation(n)[:size]] = 0
    return weights
