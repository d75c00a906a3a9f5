"""What if some training samples had not been there? One Newton step for the whole set. No torch.

Shapes: n training samples, m targets, s removed samples, k dimensions, M checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.sparse.linalg import LinearOperator, cg, eigsh

from trak_lightning.decisions.removal import Removal
from trak_lightning.errors import StaleRowsError
from trak_lightning.run.formatting import counted
from trak_lightning.run.meaning import Meaning
from trak_lightning.run.positions import some
from trak_lightning.runtime.tracebacks import shows_users_frames
from trak_lightning.scoring.base import Array, CheckpointFeatures, require_compatible
from trak_lightning.scoring.display import ShowsLines
from trak_lightning.scoring.gram import diagonal
from trak_lightning.scoring.regularization import choose
from trak_lightning.scoring.views import some_targets
from trak_lightning.stores.base import FeatureRows


class WhatIf:
    """Answers for any number of sets; the factors are computed once and kept in the run directory.

    With A = ΦᵀWΦ + λI, the Newton step without the set S changes the output of a target z by
    ``−φ(z)ᵀ (A − Φ_SᵀW_SΦ_S)⁻¹ Φ_Sᵀ q_S = −φ(z)ᵀ A⁻¹Φ_Sᵀ (I − W_S Φ_S A⁻¹ Φ_Sᵀ)⁻¹ q_S``, where q is averaged over
    checkpoints. For a small set it is minus the sum of the scores; for a larger one it accounts for samples that share a
    direction, each of which would be replaced by the others if it alone were removed.

    Args:
        checkpoints: the stored features.
        regularization: λ, as for the ``trak`` scorer.
        weights: the Gram weighting W, as for the ``trak`` scorer. With ``gauss_newton`` (W = ∂²ℓ/∂f²) the step is Newton's:
            for a linear or ridge regression whose λ is given, the exact refit. Other weightings approximate it.
        meaning: what the output of the task means, for what is printed.
        samples: shows the targets in what is printed.

    Raises:
        SettingsError: there is no such rule for λ, or no such weighting.
        DataError: ``calibrate`` without recorded subsets.
    """

    def __init__(
        self,
        checkpoints: Sequence[CheckpointFeatures],
        regularization: float | str = "auto",
        weights: str = "auto",
        *,
        meaning: Meaning | None = None,
        samples: ShowsLines | None = None,
    ) -> None:
        require_compatible(checkpoints)
        self._checkpoints = checkpoints
        self._meaning = meaning or Meaning()
        self._shown_targets = samples
        self._has_curvature = any(features.train.column("curvature").any() for features in checkpoints)
        chosen = choose(regularization, weights, checkpoints)
        self._inverses = [system.inverse(value) for system, value in zip(chosen.systems, chosen.values, strict=True)]
        self._weighting = chosen.systems[0].weighting
        self._units = [system.unit for system in chosen.systems]
        self.num_train = checkpoints[0].train.spec.num_samples
        m = checkpoints[0].targets.spec.num_samples
        self._targets = [features.targets.rows(0, m) for features in checkpoints]
        self._digest = checkpoints[0].train.digest()
        self._outputs = np.stack([rows.output for rows in self._targets]).astype(np.float64).mean(0)

    def __repr__(self) -> str:
        return (
            f"WhatIf: {len(self._outputs)} targets, {self.num_train} training samples, "
            f"{counted(len(self._checkpoints), 'checkpoint')}"
        )

    @shows_users_frames
    def remove(self, samples: npt.ArrayLike) -> Removal:
        """Predict the outputs without some training samples.

        Args:
            samples: distinct positions (s,), one position, or a mask (n,) of bools.

        Raises:
            DataError: they are no positions in the training set, or all of them.
            StaleRowsError: the stored training rows were replaced since the factors were computed.
        """
        train = self._checkpoints[0].train
        if train.digest() != self._digest:
            raise StaleRowsError(
                f"the stored rows of {train.spec.split!r} were replaced since this WhatIf was made, and its factors are those of the earlier "
                "ones. Make another one, as TRAK.what_if does."
            )
        removed = some(samples if isinstance(samples, str) else np.atleast_1d(samples), self.num_train, "sample")
        rows = [_rows(features, removed) for features in self._checkpoints]
        q = np.stack([each.loss_weight for each in rows]).astype(np.float64).mean(0)
        summed, change, leverages = [], [], []
        for inverse, unit, targets, each in zip(self._inverses, self._units, self._targets, rows, strict=True):
            block = _Block(inverse.solve(each.features), each.features, diagonal(each, self._weighting))
            z = targets.features.astype(np.float64)
            summed.append(-unit * z @ (q @ block.solved))
            change.append(-unit * z @ (block.coefficients(q) @ block.solved) if self._has_curvature else summed[-1])
            leverages.append(block.leverage())
        M, changes = len(change), np.stack(change)
        spread = changes.std(0, ddof=1) / M**0.5 if M > 1 else np.full(changes.shape[1], np.nan)
        return Removal(
            removed,
            changes.mean(0),
            spread,
            np.mean(summed, 0),
            self._outputs,
            max(leverages),
            self.num_train,
            self._has_curvature,
            self._meaning,
            M,
            self._shown_targets,
        )


@dataclass(frozen=True)
class _Block:
    """A set of samples under one checkpoint, with K = Φ_S A⁻¹ Φ_Sᵀ, which is never formed."""

    solved: Array
    """Φ_S A⁻¹ (s, k)"""
    features: Array
    """Φ_S (s, k)"""
    weights: Array
    """Diagonal of W_S (s,)"""

    def coefficients(self, q: Array) -> Array:
        """Return (I − WK)⁻¹ q = q + W^½ (I − W^½KW^½)⁻¹ W^½ K q: (s,)."""
        root = np.sqrt(self.weights)
        system = LinearOperator(
            (len(q), len(q)), lambda v: np.ravel(v) - self._leverages(np.ravel(v)), dtype=np.float64
        )
        found, _ = cg(system, root * (self.solved @ (q @ self.features)), rtol=1e-8, maxiter=500)
        coefficients: Array = q + root * found
        return coefficients

    def leverage(self) -> float:
        """Return the largest eigenvalue of W^½KW^½, which is below 1."""
        s = len(self.weights)
        if s == 1:
            return float(self._leverages(np.ones(1))[0])
        operator = LinearOperator((s, s), lambda v: self._leverages(np.ravel(v)), dtype=np.float64)
        return float(eigsh(operator, k=1, v0=np.ones(s), tol=1e-3, return_eigenvectors=False)[0])

    def _leverages(self, v: Array) -> Array:
        root = np.sqrt(self.weights)
        found: Array = root * (self.solved @ ((root * v) @ self.features))
        return found


def _rows(features: CheckpointFeatures, samples: Array) -> FeatureRows:
    chosen = replace(features, targets=features.train)
    return some_targets(chosen, samples).targets.read_block(0)
