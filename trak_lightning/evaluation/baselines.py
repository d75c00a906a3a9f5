"""Random scores: the baseline of a score that knows nothing."""

from collections.abc import Iterator, Sequence

import numpy as np

from trak_lightning.scoring.base import Array, CheckpointFeatures, Scorer, Scoring


class Random(Scorer):
    """Independent standard normal scores.

    Args:
        seed: together with its position, seeds each row.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, checkpoints: Sequence[CheckpointFeatures]) -> Scoring:
        return _RandomScoring(checkpoints, self.seed)


class _RandomScoring(Scoring):
    def __init__(self, checkpoints: Sequence[CheckpointFeatures], seed: int) -> None:
        super().__init__(checkpoints)
        self._seed = seed

    def tiles(self, start: int, stop: int) -> Iterator[Array]:
        generators = [np.random.default_rng([self._seed, row]) for row in range(start, stop)]
        yield np.stack([generator.standard_normal(self.num_train) for generator in generators])
