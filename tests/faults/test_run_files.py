"""Every kind of file of a run directory, cut short at any byte: refused with an error of ours, done again, or read as it was."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from trak_lightning.cli import main
from trak_lightning.errors import TrakError
from trak_lightning.evaluation.result import Result, read_result
from trak_lightning.model import weight_files as weights
from trak_lightning.retraining.outputs import output_path, read_outputs
from trak_lightning.run.directory import CheckpointRecord, RunDirectory, RunRecord, read_subset
from trak_lightning.scoring.score_run import score_run
from trak_lightning.scoring.scores import Scores
from trak_lightning.scoring.trak import Trak
from trak_lightning.stores.configured import open_store
from trak_lightning.stores.hdf5 import HDF5Store
from trak_lightning.testing.stores import SPEC, filled_store


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    store = HDF5Store()
    for split in ("train", "test"):
        filled_store(store, run.features, replace(SPEC, split=split))
    run.write(RunRecord(checkpoints=(CheckpointRecord("a1", "a.ckpt"),)))
    run.config.write_text(yaml.safe_dump({"seed": 0, "store": {"class_path": "trak_lightning.stores.hdf5.HDF5Store"}}))
    run.write_subset("a1", np.arange(0, 23, 2))
    run.checkpoints.mkdir()
    torch.save({"state_dict": {"weight": torch.ones(3)}}, run.checkpoints / "00.ckpt")
    output_path(run.evaluation / "models", 0).parent.mkdir(parents=True)
    np.savez(output_path(run.evaluation / "models", 0), subset=np.arange(9), outputs=np.ones(23))
    Result("lds", "title", "text", "headline", ("scores",), (("ours",),), {"lds": 0.5}).write(
        run.evaluation / "lds-test.json"
    )
    score(run)
    return run


def score(run):
    """Compute scores again from features and factors."""
    run.scores("test").unlink(missing_ok=True)
    store = HDF5Store()
    store.bind(run.features)
    return score_run(run, store, Trak(regularization=0.1), targets="test")[0].values.tobytes()


READERS = {
    "config.yaml": lambda run: type(open_store(run)),
    "run.json": lambda run: run.read().checkpoints,
    "checkpoints/00.ckpt": lambda run: weights.read(run.checkpoints / "00.ckpt").state_dict["weight"].tolist(),
    "subsets/a1.npy": lambda run: read_subset(run.path / "subsets/a1.npy").tolist(),
    "factors/train/a1/*.npy": score,
    "scores/test.h5": lambda run: [
        part.tobytes() for part in (Scores(run.scores("test")).values, *Scores(run.scores("test")).top(3)[:2])
    ],
    "evaluation/lds-test.json": lambda run: read_result(run.evaluation / "lds-test.json"),
    "evaluation/models/0000.npz": lambda run: read_outputs(
        run.evaluation / "models", 1, num_samples=23, num_targets=23
    )[1].tolist(),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_a_run_cut_short_anywhere_is_refused_or_made_again(name, run):
    read = READERS[name]
    expected = read(run)
    paths = list(run.path.glob(name))
    assert paths
    for path in paths:
        whole = path.read_bytes()
        for length in sorted({*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1}):
            path.write_bytes(whole[:length])
            try:
                assert read(run) == expected
            except TrakError:
                continue
            finally:
                path.write_bytes(whole)


def test_verify_ends_with_status_1_where_a_byte_of_the_scores_is_another(run):
    path, read, generator = run.scores("test"), READERS["scores/test.h5"], random.Random(0)
    whole, expected, found = path.read_bytes(), read(run), 0
    assert main(["verify", str(run.path)]) == 0
    for position in generator.sample(range(len(whole)), 80):
        path.write_bytes(
            whole[:position] + bytes([whole[position] ^ 1 << generator.randrange(8)]) + whole[position + 1 :]
        )
        if main(["verify", str(run.path)]) == 0:  # it is part of no number
            assert read(run) == expected
        else:
            found += 1
    path.write_bytes(whole)
    assert found > 20


@pytest.mark.parametrize(
    ("name", "status"),
    [("run.json", 1), ("subsets/a1.npy", 1), ("features/train/a1/manifest.json", 1), ("config.yaml", 2)],
)
def test_verify_fails_where_a_file_is_cut_short(name, status, run):
    path = run.path / name
    whole = path.read_bytes()
    assert main(["verify", str(run.path)]) == 0
    path.write_bytes(whole[: len(whole) // 2])
    assert main(["verify", str(run.path)]) == status
    path.write_bytes(whole)
