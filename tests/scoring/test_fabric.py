"""Several processes share the work of scoring, and give the scores of one."""

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from trak_lightning.cli import main
from trak_lightning.errors import DataError
from trak_lightning.run.directory import CheckpointRecord, RunDirectory
from trak_lightning.scoring.backend import Backend
from trak_lightning.scoring.fabric import _TorchGramSum, _TorchLeftFactor
from trak_lightning.scoring.scores import Scores
from trak_lightning.scoring.trak import Trak
from trak_lightning.stores.base import FeatureRows, FeatureSpec
from trak_lightning.stores.hdf5 import HDF5Store

N, K, M = 300, 24, 12


@pytest.fixture
def run(tmp_path):
    """A run directory with two checkpoints, in blocks that two processes cannot split evenly."""
    found, rng = RunDirectory(tmp_path / "run"), np.random.default_rng(0)
    found.register([CheckpointRecord(name, name) for name in ("a", "b")])
    store = HDF5Store()
    store.bind(found.features)
    for checkpoint in ("a", "b"):
        for split, n in (("train", N), ("test", M)):
            created = store.create(FeatureSpec(split, checkpoint, n, K, 4, 44, {}))
            for block in range(created.spec.num_blocks):
                inside = created.spec.block_range(block)
                phi = rng.standard_normal((len(inside), K), dtype=np.float32)
                q = rng.uniform(0, 1, len(inside)).astype(np.float32)
                created.write_block(block, FeatureRows(np.arange(inside.start, inside.stop), phi, q, q, q))
    return found


def test_two_processes_give_the_scores_of_one(run):
    options = ("score", "--run_dir", str(run.path), "--accelerator", "cpu")
    assert main([*options, "--name", "one"]) == 0
    shutil.rmtree(run.path / "factors")
    # A process of its own, which Lightning starts once more.
    command = [sys.executable, "-m", "trak_lightning", *options, "--name", "two", "--devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("12 targets × 300 training samples") == 1  # one of them speaks
    one, two = (Scores(run.scores(name)) for name in ("one", "two"))
    # Products of K terms in single precision err by about √K·2⁻²⁴ of their factors' norms, ten times the largest score at
    # most here, whichever way a matrix library cuts them.
    bound = 10 * np.sqrt(K) * 2**-24 * np.abs(one.values).max()
    np.testing.assert_allclose(two.values, one.values, rtol=0, atol=bound)
    np.testing.assert_array_equal(two.top(20).indices, np.argsort(-two.values, axis=1, kind="stable")[:, :20])
    for found, expected in zip(two.bottom(20)[1:], one.bottom(20)[1:], strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound)
    assert not list(run.scores("two").parent.glob("*.part"))


def test_shares_cover_everything_once():
    for count in (0, 1, 5, 7):
        processes = [Backend() for _ in range(3)]
        for rank, process in enumerate(processes):
            process.rank, process.world_size = rank, 3
        assert [i for process in processes for i in process.share(count)] == list(range(count))


def test_more_processes_than_blocks_are_refused(features):
    many = Backend()
    many.world_size = 3
    found = replace(features(np.ones((9, 3)), np.ones((1, 3)), q=np.ones(9)), backend=many)
    with pytest.raises(DataError, match="3 processes cannot share the 2 blocks of train/c: use at most 2 devices"):
        Trak().fit([found])


def test_products_on_a_device_are_those_of_numpy():
    import torch

    rng, device = np.random.default_rng(0), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, others = (rng.standard_normal((n, K), dtype=np.float32) for n in (7, 9))
    out, expected = np.empty((7, 9), np.float32), np.empty((7, 9), np.float32)
    _TorchLeftFactor(rows.astype(np.float64), device)(others, out)
    Backend().left_factor(rows)(others, expected)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    squares = [_TorchGramSum(K, device), Backend().gram_sum(K)]
    for total in squares:
        total.add(rows)
        total.add(others)
    np.testing.assert_allclose(squares[0].result(), squares[1].result(), rtol=1e-5, atol=1e-5)
