"""What `trak check` says a run will take: the disk to a few bytes; of time and memory, how they grow."""

from dataclasses import replace

import numpy as np
import pytest

from trak_lightning import TRAK, estimates, rehearsal
from trak_lightning.errors import StorageError
from trak_lightning.estimates import Arithmetic, Featurizing, Storing, Workload
from trak_lightning.stores.base import FeatureRows, FeatureSpec
from trak_lightning.stores.hdf5 import HDF5Store

WORK = Workload(train=10_000, targets=500, checkpoints=3, dim=2048, block_size=1000)
TOOK = Featurizing(sample=1e-3, first_batch=2.0, feature_set=0.1, fit=0.0, load=0.5)
STORED = Storing(set_bytes=900, block_bytes=6000, row_bytes=8212, write=1e-9, read=1e-9, in_memory=False)
SPEED = Arithmetic(single=1e11, factor=3e10, solve=3e10, passed=1e9)


@pytest.mark.parametrize("options", [{}, {"dtype": "int8"}, {"dtype": "float16", "compression": "zstd"}], ids=str)
def test_the_disk_is_what_features_then_take(options, tmp_path):
    rng = np.random.default_rng(0)
    spec = FeatureSpec("train", "0123", num_samples=1900, dim=256, batch_size=50, block_size=300)

    def rows(samples):
        columns = rng.standard_normal((3, len(samples)), np.float32)
        return FeatureRows(np.array(samples), rng.standard_normal((len(samples), spec.dim), np.float32), *columns)

    store = HDF5Store(**options)
    storing = rehearsal.storing(store, spec, rows(range(50)), tmp_path / "run")
    assert not list(tmp_path.iterdir())
    store.bind(tmp_path)
    features = store.create(spec)
    for block in range(spec.num_blocks):
        features.write_block(block, rows(spec.block_range(block)))
    assert storing.nbytes(1900, 300) == pytest.approx(features.nbytes(), rel=0.01)


@pytest.mark.parametrize("dim", [16, 96], ids=["n > k", "n < k"])
def test_the_disk_is_what_factors_and_scores_then_take(dim, model, train_set, test_set, tmp_path):
    trak = TRAK(model, "image_classification", tmp_path, projector={"name": "gaussian", "dim": dim})
    trak.featurize(train_set)
    trak.score(test_set)
    found = estimates.disk(Workload(len(train_set), len(test_set), 1, dim, block_size=1024), STORED)
    for part in ("factors", "scores"):
        taken = sum(path.stat().st_size for path in (tmp_path / part).rglob("*") if path.is_file())
        assert getattr(found, part) == pytest.approx(taken, abs=8192)


def test_every_checkpoint_costs_the_same_after_the_first_batch():
    one, three = (estimates.seconds(replace(WORK, checkpoints=M), TOOK, STORED, SPEED) for M in (1, 3))
    assert three.featurize - TOOK.first_batch == pytest.approx(3 * (one.featurize - TOOK.first_batch))
    assert three.score == pytest.approx(3 * one.score)
    weights, sets, samples = 3 * 0.5, 2 * 0.1, 10.5
    assert one.featurize == pytest.approx(2 + weights + sets + samples, rel=0.01)


def test_processes_share_whole_blocks():
    busy = [
        estimates.seconds(replace(WORK, targets=0, processes=G), TOOK, STORED, SPEED).featurize for G in (1, 2, 4, 9)
    ]
    fixed = 2 + 3 * (2 * 0.5 + 0.1)
    np.testing.assert_allclose(np.array(busy) - fixed, np.array([10, 5, 3, 2]) * 3.0, rtol=0.01)


def test_where_storing_is_slower_than_gradients_it_decides():
    slow = replace(STORED, write=1e-3 / 8212 * 4)  # four times the seconds of a sample
    one = replace(WORK, targets=0, checkpoints=1)
    assert estimates.seconds(one, TOOK, slow, SPEED).featurize == pytest.approx(2 + 2 * 0.5 + 0.1 + 40, rel=0.01)


def test_scores_that_come_from_no_solve_cost_less_of_everything():
    plain = replace(WORK, solves=False)
    assert estimates.seconds(plain, TOOK, STORED, SPEED).score < estimates.seconds(WORK, TOOK, STORED, SPEED).score
    assert estimates.disk(plain, STORED).factors == 0
    peaks = [estimates.memory(work, STORED, peak=5e8, now=4e8) for work in (plain, WORK)]
    assert peaks[0].featurize == peaks[1].featurize
    assert peaks[1].score - peaks[0].score >= 3 * 16 * 2048**2


def test_memory_does_not_grow_with_the_data_unless_rows_are_kept_in_it():
    larger = replace(WORK, train=10**7)
    assert estimates.memory(larger, STORED, peak=5e8, now=4e8) == estimates.memory(WORK, STORED, peak=5e8, now=4e8)
    kept = replace(STORED, in_memory=True)
    grown = (
        estimates.memory(larger, kept, peak=0, now=0).featurize - estimates.memory(WORK, kept, peak=0, now=0).featurize
    )
    assert grown == pytest.approx(3 * (10**7 - 10**4) * 8212)
    assert estimates.disk(larger, kept).features == 0


def test_a_place_that_cannot_be_written_to_is_refused_before_hours_are_spent(model, train_set):
    with pytest.raises(StorageError, match="nothing can be written where /proc/no/run is to be"):
        TRAK(model, "image_classification", "/proc/no/run", projector="identity").check(train_set)
