"""Soft-thresholding of scores."""

from collections.abc import Iterator

import numpy as np

from trak_lightning.errors import SettingsError, as_number
from trak_lightning.scoring.base import Array, Scoring, Tile


class SoftThreshold(Scoring):
    """``S(τ; t) = sign(τ) · max(|τ| − t, 0)``: small scores become zero (Park et al. 2023, section 3.2, step 5)."""

    def __init__(self, scoring: Scoring, threshold: float) -> None:
        self.num_targets, self.num_train = scoring.num_targets, scoring.num_train
        self.settings = {**scoring.settings, "threshold": {"value": threshold}}
        self.threshold = threshold
        self.backend, self.target_bytes = scoring.backend, scoring.target_bytes
        self._scoring = scoring

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
    """Return sign(τ) · max(|τ| − t, 0) of every score."""
    shrunk: Array = np.sign(scores) * np.maximum(np.abs(scores) - threshold, 0)
    return shrunk


def parse_threshold(threshold: float | str) -> float:
    """Return the threshold as a number; it may come as text from a command line.

    Raises:
        SettingsError: it is not a number t ≥ 0.
    """
    if threshold == "calibrate":
        raise SettingsError(
            "threshold 'calibrate' was removed: give a number t ≥ 0. To keep only the largest scores of each target, score "
            "with top=K (trak score --keep K)."
        )
    value = as_number(threshold)
    if not 0 <= value < float("inf"):
        raise SettingsError(f"threshold must be a number t ≥ 0, got {threshold!r}")
    return value
