"""Soft-thresholding of scores."""

from collections.abc import Iterator, Sequence

import numpy as np

from trak_lightning.errors import SettingsError
from trak_lightning.evaluation.lds import mean_spearman
from trak_lightning.scoring.base import BLOCK_BYTES, Array, CheckpointFeatures, Scoring, Tile
from trak_lightning.scoring.calibration import require_calibration
from trak_lightning.scoring.inner_products import InnerProducts

KEPT_FRACTIONS = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005)
"""Candidates of ``calibrate``: the threshold at which this part of all scores remains."""

JUDGED = 200
"""Targets, evenly spaced, that the threshold is judged on; fewer where their scores would take up more than `BLOCK_BYTES`."""


class SoftThreshold(Scoring):
    """``S(τ; t) = sign(τ) · max(|τ| − t, 0)``: small scores become zero (Park et al. 2023, section 3.2, step 5)."""

    def __init__(self, scoring: Scoring, threshold: float) -> None:
        self.num_targets, self.num_train, self.settings = scoring.num_targets, scoring.num_train, dict(scoring.settings)
        self.threshold = threshold
        self.compute = scoring.compute
        self._scoring = scoring

    @classmethod
    def of(
        cls, scoring: InnerProducts, threshold: float | str, checkpoints: Sequence[CheckpointFeatures]
    ) -> "SoftThreshold":
        """With t as given, or for ``calibrate`` as chosen.

        Raises:
            DataError: ``calibrate`` without recorded subsets.
        """
        if threshold != "calibrate":
            found = cls(scoring, float(threshold))
            found.settings["threshold"] = {"value": float(threshold)}
            return found
        require_calibration(checkpoints)
        value, settings = _calibrate(scoring, checkpoints)
        found = cls(scoring, value)
        found.settings["threshold"] = settings
        return found

    @property
    def share(self) -> range:
        return self._scoring.share

    def tiles(self, start: int, stop: int) -> Iterator[Array]:
        for tile in self._scoring.tiles(start, stop):
            yield soft_threshold(tile, self.threshold)

    def columns(self, start: int, stop: int, columns: range) -> Iterator[Tile]:
        for tile in self._scoring.columns(start, stop, columns):
            yield Tile(soft_threshold(tile.scores, self.threshold))


def soft_threshold(scores: Array, threshold: float) -> Array:
    """sign(τ) · max(|τ| − t, 0), elementwise."""
    shrunk: Array = np.sign(scores) * np.maximum(np.abs(scores) - threshold, 0)
    return shrunk


def parse_threshold(threshold: float | str) -> float | str:
    """A number or ``calibrate``.

    Raises:
        SettingsError: anything else.
    """
    if threshold == "calibrate":
        return threshold
    try:
        value = float(threshold)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise SettingsError(f"threshold must be a number t ≥ 0 or 'calibrate', got {threshold!r}")
    return value


def _calibrate(scoring: InnerProducts, checkpoints: Sequence[CheckpointFeatures]) -> tuple[float, dict[str, object]]:
    """The t at which scores made from the other checkpoints, summed over a checkpoint's subset, best predict what it says."""
    judged = min(JUDGED, scoring.num_targets, max(1, BLOCK_BYTES // (4 * scoring.num_train)))
    targets = np.unique(np.linspace(0, scoring.num_targets - 1, judged).astype(int))
    some = scoring.of_targets(targets)
    outputs = np.stack([features.targets.column("output")[targets] for features in checkpoints])
    predicted = np.zeros((len(KEPT_FRACTIONS), *outputs.shape))
    for j, features in enumerate(checkpoints):
        scores = some.without(j).rows(0, len(targets))
        for position, t in enumerate(_candidates(scores)):
            predicted[position, j] = soft_threshold(scores, t)[:, features.subset].sum(1)
    curve = [mean_spearman(prediction, outputs) for prediction in predicted]
    best = int(np.argmax(curve))
    value = _candidates(some.rows(0, len(targets)))[best]
    return value, {"value": value, "kept": KEPT_FRACTIONS[best], "curve": {"kept": list(KEPT_FRACTIONS), "lds": curve}}


def _candidates(scores: Array) -> list[float]:
    return [0.0 if kept == 1 else float(np.quantile(np.abs(scores), 1 - kept)) for kept in KEPT_FRACTIONS]
