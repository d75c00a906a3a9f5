"""The laws of scorers, as a test suite."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from trak_lightning.errors import IncompatibleRunError, IncompleteRunError
from trak_lightning.scoring.base import Array, CheckpointFeatures, Scorer, Scoring
from trak_lightning.scoring.scores import write_scores
from trak_lightning.stores.base import FeatureRows, FeatureSpec
from trak_lightning.stores.memory import MemoryStore
from trak_lightning.testing.options import require_recorded_options

N, K, TARGETS, CHECKPOINTS = 37, 6, 5, 3


class ScorerConformance:
    """Subclass with ``scorer``, a class or function that creates one without arguments."""

    scorer: ClassVar[Callable[[], Scorer]]
    tolerance: ClassVar[float] = 1e-6
    """How much scores may change with the size of blocks, relative to the largest score."""

    def fit(self, checkpoints: list[CheckpointFeatures]) -> Scoring:
        return type(self).scorer().fit(checkpoints)

    def close(self, found: Array, expected: Array) -> None:
        np.testing.assert_allclose(found, expected, atol=self.tolerance * np.abs(expected).max())

    def test_scores_are_finite_and_one_row_a_target(self) -> None:
        scoring = self.fit(problem())
        assert (scoring.num_targets, scoring.num_train) == (TARGETS, N)
        scores = scoring.rows(0, TARGETS)
        assert scores.shape == (TARGETS, N)
        assert np.isfinite(scores).all()
        assert np.ptp(scores) > 0

    def test_a_sample_that_is_the_target_itself_helps_it(self) -> None:
        """A positive score means that having the training sample raises the target's output, as a copy of the target does."""
        scores = self.fit(problem(targets_are_training=True)).rows(0, TARGETS)
        assert (np.diag(scores[:, :TARGETS]) > 0).all()

    def test_targets_do_not_depend_on_each_other(self) -> None:
        scoring = self.fit(problem())
        everything = scoring.rows(0, TARGETS)
        for start, stop in ((0, 1), (2, 4), (4, 5)):
            self.close(scoring.rows(start, stop), everything[start:stop])

    def test_tiles_are_consecutive_columns_of_the_rows(self) -> None:
        scoring = self.fit(problem())
        tiles = [tile.copy() for tile in scoring.tiles(1, 4)]
        np.testing.assert_array_equal(np.concatenate(tiles, axis=1), scoring.rows(1, 4))

    def test_some_columns_are_those_of_all(self) -> None:
        scoring = self.fit(problem())
        everything = scoring.rows(0, TARGETS)
        for columns in (range(N), range(0, 8), range(8, 24), range(32, N)):
            parts = [tile.scores.copy() for tile in scoring.columns(0, TARGETS, columns)]
            self.close(np.concatenate(parts, axis=1), everything[:, columns.start : columns.stop])

    def test_scores_do_not_depend_on_the_size_of_blocks(self) -> None:
        expected = self.fit(problem()).rows(0, TARGETS)
        for block_size in (1, 5, 100):
            self.close(self.fit(problem(block_size=block_size)).rows(0, TARGETS), expected)

    def test_scores_do_not_depend_on_the_order_of_checkpoints(self) -> None:
        expected = self.fit(problem()).rows(0, TARGETS)
        self.close(self.fit(problem()[::-1]).rows(0, TARGETS), expected)

    def test_scores_follow_a_permutation_of_the_training_samples(self) -> None:
        order = np.random.default_rng(5).permutation(N)
        expected = self.fit(problem()).rows(0, TARGETS)
        self.close(self.fit(problem(order=order)).rows(0, TARGETS), expected[:, order])

    def test_one_checkpoint_is_enough(self) -> None:
        assert np.isfinite(self.fit(problem()[:1]).rows(0, TARGETS)).all()

    def test_fitting_again_gives_the_same_bits(self) -> None:
        np.testing.assert_array_equal(self.fit(problem()).rows(0, TARGETS), self.fit(problem()).rows(0, TARGETS))

    def test_what_was_kept_in_a_folder_changes_nothing(self, tmp_path: Path) -> None:
        expected = self.fit(problem()).rows(0, TARGETS)
        for _ in range(2):
            self.close(self.fit(problem(cache=tmp_path)).rows(0, TARGETS), expected)

    def test_settings_are_json(self) -> None:
        scorer = type(self).scorer()
        assert json.loads(json.dumps(scorer.state)) == scorer.state
        require_recorded_options(scorer)
        settings = scorer.fit(problem()).settings
        assert json.loads(json.dumps(settings)) == settings

    def test_score_files_hold_the_scores(self, tmp_path: Path) -> None:
        scoring = self.fit(problem())
        found = write_scores(tmp_path / "scores.h5", scoring, {})
        self.close(found.values, scoring.rows(0, TARGETS))
        order = np.argsort(-found.values, axis=1, kind="stable")[:, :4]
        np.testing.assert_array_equal(found.top(4).indices, order)

    def test_sets_that_do_not_belong_together_are_refused(self) -> None:
        checkpoints = problem()
        other = problem(order=np.arange(N - 1))[1]
        with pytest.raises(IncompatibleRunError):
            self.fit([checkpoints[0], other])
        with pytest.raises(IncompleteRunError):
            self.fit(problem(complete=False))


def problem(
    *,
    block_size: int = 8,
    order: Array | None = None,
    targets_are_training: bool = False,
    cache: Path | None = None,
    complete: bool = True,
) -> list[CheckpointFeatures]:
    """Return random features in float64 under three checkpoints; `order` selects training samples."""
    rng, found = np.random.default_rng(3), []
    for checkpoint in range(CHECKPOINTS):
        train, targets = rng.standard_normal((N, K)), rng.standard_normal((TARGETS, K))
        q, output = rng.uniform(0.1, 1, N), rng.standard_normal(N)
        if targets_are_training:
            targets = train[:TARGETS].copy()
        kept = np.arange(N) if order is None else order
        folder = None if cache is None else cache / str(checkpoint)
        sets = []
        for split, phi, columns in (
            ("train", train[kept], [output[kept], q[kept], (q * (1 - q))[kept]]),
            ("test", targets, [np.zeros(TARGETS), np.ones(TARGETS), np.ones(TARGETS)]),
        ):
            store = MemoryStore()
            created = store.create(FeatureSpec(split, str(checkpoint), len(phi), K, 1, block_size, {}))
            for block in range(created.spec.num_blocks - (not complete)):
                inside = created.spec.block_range(block)
                part = slice(inside.start, inside.stop)
                rows = FeatureRows(np.arange(*part.indices(len(phi))), phi[part], *[c[part] for c in columns])
                created.write_block(block, rows)
            sets.append(created)
        found.append(CheckpointFeatures(sets[0], sets[1], cache=folder))
    return found
