"""Conformance suite of feature stores."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from trak_lightning.errors import DataError, IncompatibleRunError, IncompleteRunError, NonFiniteGradientError
from trak_lightning.stores.base import FeatureRows, FeatureSet, FeatureSpec, FeatureStore

SPEC = FeatureSpec(
    split="train",
    checkpoint="a1",
    num_samples=23,
    dim=5,
    batch_size=4,
    block_size=8,
    fingerprint={"seed": 0, "projector": {"class": "p", "dim": 5}},
)


class StoreConformance:
    """Tests of every law of `FeatureStore` and `FeatureSet`. Subclass it and set ``store``.

    ``store`` is a class or function that makes a store without arguments.
    """

    store: ClassVar[Callable[[], FeatureStore]]
    persistent: ClassVar[bool] = True
    """Whether a second store object finds what the first one stored in the same folder."""

    @pytest.fixture
    def bound(self, tmp_path: Path) -> FeatureStore:
        store = type(self).store()
        store.bind(tmp_path / "features")
        return store

    def reopen(self, bound: FeatureStore, tmp_path: Path) -> FeatureStore:
        if not self.persistent:
            return bound
        store = type(self).store()
        store.bind(tmp_path / "features")
        return store

    def test_what_is_written_is_read_back_bit_for_bit(self, bound: FeatureStore, tmp_path: Path) -> None:
        created = bound.create(SPEC)
        for block in (2, 0, 1):
            created.write_block(block, rows(SPEC, block))
        found = self.reopen(bound, tmp_path).open("train", "a1")
        assert found.spec == SPEC
        for block, read in enumerate(found.blocks()):
            expected = rows(SPEC, block)
            for name in ("index", "features", "output", "loss_weight", "curvature", "content"):
                np.testing.assert_array_equal(getattr(read, name), getattr(expected, name))
                assert getattr(read, name).dtype == getattr(expected, name).dtype
        for name in ("output", "loss_weight", "curvature", "content"):
            whole = np.concatenate([getattr(rows(SPEC, block), name) for block in range(3)])
            np.testing.assert_array_equal(found.column(name), whole)

    def test_blocks_are_missing_until_they_are_written(self, bound: FeatureStore, tmp_path: Path) -> None:
        created = bound.create(SPEC)
        assert created.missing_blocks() == [0, 1, 2]
        created.write_block(1, rows(SPEC, 1))
        found = self.reopen(bound, tmp_path).create(SPEC)
        assert found.missing_blocks() == [0, 2]
        assert not found.complete
        with pytest.raises(IncompleteRunError):
            found.read_block(0)

    def test_a_block_may_be_written_again(self, bound: FeatureStore) -> None:
        created = bound.create(SPEC)
        created.write_block(0, rows(SPEC, 0))
        created.write_block(0, replace(rows(SPEC, 0), output=np.full(8, 3, np.float32)))
        assert created.read_block(0).output.tolist() == [3.0] * 8

    def test_a_discarded_block_is_missing_and_may_be_written_again(self, bound: FeatureStore, tmp_path: Path) -> None:
        created = bound.create(SPEC)
        for block in range(3):
            created.write_block(block, rows(SPEC, block))
        created.discard(1)
        found = self.reopen(bound, tmp_path).open("train", "a1")
        assert found.missing_blocks() == [1]
        assert found.column("output", [2, 0]).tolist() == [*rows(SPEC, 2).output, *rows(SPEC, 0).output]
        found.write_block(1, rows(SPEC, 1))
        assert found.complete

    def test_content_is_zero_where_it_is_unknown(self, bound: FeatureStore, tmp_path: Path) -> None:
        known = rows(SPEC, 0)
        unknown = FeatureRows(known.index, known.features, known.output, known.loss_weight, known.curvature)
        bound.create(SPEC).write_block(0, unknown)
        read = self.reopen(bound, tmp_path).open("train", "a1").read_block(0).content
        assert (read.dtype, read.tolist()) == (np.dtype(np.uint64), [0] * 8)

    def test_a_set_made_with_other_settings_is_refused_with_both_values(self, bound: FeatureStore) -> None:
        bound.create(SPEC)
        changes: dict[str, dict[str, Any]] = {
            r"projector\.dim = 5, and 6": {"fingerprint": {"seed": 0, "projector": {"class": "p", "dim": 6}}},
            r"seed = 0, and 1": {"fingerprint": {**SPEC.fingerprint, "seed": 1}},
            r"length of the dataset = 23, and 24": {"num_samples": 24},
        }
        for message, change in changes.items():
            with pytest.raises(IncompatibleRunError, match=message):
                bound.create(replace(SPEC, **change))

    def test_a_resumed_set_keeps_its_batches(self, bound: FeatureStore) -> None:
        bound.create(SPEC)
        found = bound.create(replace(SPEC, batch_size=3, block_size=6))
        assert (found.spec.batch_size, found.spec.block_size) == (4, 8)

    def test_sets_are_listed_and_opening_a_set_that_does_not_exist_is_refused(self, bound: FeatureStore) -> None:
        assert bound.list() == []
        for checkpoint in ("b2", "a1"):
            bound.create(replace(SPEC, checkpoint=checkpoint))
        assert bound.list() == [("train", "a1"), ("train", "b2")]
        with pytest.raises(IncompleteRunError, match="no features of 'test'.*train"):
            bound.open("test", "a1")

    def test_nan_is_refused_with_the_samples(self, bound: FeatureStore) -> None:
        created, bad = bound.create(SPEC), rows(SPEC, 1)
        bad.features[3, 2] = np.nan
        with pytest.raises(NonFiniteGradientError, match=r"samples \[11\]"):
            created.write_block(1, bad)
        assert created.missing_blocks() == [0, 1, 2]

    def test_rows_of_another_block_or_shape_are_refused(self, bound: FeatureStore) -> None:
        created = bound.create(SPEC)
        signed = replace(rows(SPEC, 0), content=np.arange(8))
        for wrong in (rows(SPEC, 1), rows(replace(SPEC, num_samples=7), 0), rows(replace(SPEC, dim=4), 0), signed):
            with pytest.raises(DataError):
                created.write_block(0, wrong)
        assert created.missing_blocks() == [0, 1, 2]

    def test_row_ranges_and_any_set_of_rows_are_read(self, bound: FeatureStore) -> None:
        created = self.filled(bound)
        everything = np.concatenate([block.features for block in created.blocks()])
        for start, stop in ((0, 23), (3, 5), (7, 17), (16, 23)):
            part = created.rows(start, stop)
            np.testing.assert_array_equal(part.features, everything[start:stop])
            np.testing.assert_array_equal(part.index, np.arange(start, stop))
            np.testing.assert_array_equal(part.output, created.column("output")[start:stop])
        for index in ([22, 0, 9, 9, 8], list(range(23))[::-1], []):
            np.testing.assert_array_equal(created.take(index), everything[index])
        for wrong in ([23], [-1], [0.5]):
            with pytest.raises(DataError):
                created.take(wrong)
        with pytest.raises(DataError, match="23 samples"):
            created.rows(20, 24)

    def test_reading_ahead_gives_the_same_blocks(self, bound: FeatureStore) -> None:
        created = self.filled(bound)
        for ahead in (0, 1, 5):
            for block, read in enumerate(created.blocks(ahead=ahead)):
                np.testing.assert_array_equal(read.features, rows(SPEC, block).features)
            assert [int(read.index[0]) for read in created.blocks(range(1, 3), ahead=ahead)] == [
                SPEC.block_size,
                2 * SPEC.block_size,
            ]
        next(created.blocks())  # a reader may stop early

    def test_stored_blocks_cannot_be_claimed(self, bound: FeatureStore) -> None:
        created = bound.create(SPEC)
        created.write_block(1, rows(SPEC, 1))
        assert [created.claim(block) for block in range(3)] == [True, False, True]
        created.write_block(0, rows(SPEC, 0))
        created.release(0)
        assert not created.claim(0)

    def test_a_set_grows_and_keeps_its_rows(self, bound: FeatureStore, tmp_path: Path) -> None:
        self.filled(bound)
        longer = replace(SPEC, num_samples=35, fingerprint={**SPEC.fingerprint, "data": "longer"})
        with pytest.raises(IncompatibleRunError, match="seed = 0, and 1"):
            bound.grow(replace(SPEC, fingerprint={**SPEC.fingerprint, "seed": 1}), longer)
        for _ in range(2):  # by two processes, or again after a kill
            grown = bound.grow(SPEC, longer)
        assert grown.missing_blocks() == [2, 3, 4]
        assert (grown.claim(0), grown.claim(2)) == (False, True)
        known = grown.known_rows(2)
        assert known is not None
        np.testing.assert_array_equal(known.features, rows(SPEC, 2).features[:4])  # whole batches of four
        assert grown.known_rows(3) is None
        for block in (2, 3, 4):
            grown.write_block(block, rows(longer, block))
        found = self.reopen(bound, tmp_path).open("train", "a1")
        assert found.complete
        assert found.spec == longer
        np.testing.assert_array_equal(found.read_block(1).features, rows(SPEC, 1).features)
        np.testing.assert_array_equal(found.read_block(2).features, rows(longer, 2).features)

    def filled(self, bound: FeatureStore) -> FeatureSet:
        return fill(bound.create(SPEC))


def rows(spec: FeatureSpec, block: int) -> FeatureRows:
    """Random rows of a block, a function of its number."""
    samples = spec.block_range(block)
    generator = np.random.default_rng(block)
    columns: list[npt.NDArray[Any]] = [generator.standard_normal(len(samples), np.float32) for _ in range(3)]
    features = generator.standard_normal((len(samples), spec.dim), np.float32)
    columns.append(generator.integers(0, 2**64, len(samples), np.uint64))
    return FeatureRows(np.arange(samples.start, samples.stop), features, *columns)


def fill(created: FeatureSet) -> FeatureSet:
    """Write every block of a set; returns the set."""
    for block in range(created.spec.num_blocks):
        created.write_block(block, rows(created.spec, block))
    return created


def filled_store(store: FeatureStore, root: Path, spec: FeatureSpec = SPEC) -> FeatureSet:
    """Bind a store to `root` and fill a set in it; returns the set."""
    store.bind(root)
    return fill(store.create(spec))
