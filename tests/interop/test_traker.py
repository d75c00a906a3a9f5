"""Features that traker saved give the scores that traker's formula gives."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from trak_lightning.errors import CorruptFileError, IncompatibleRunError, IncompleteRunError, StaleRowsError
from trak_lightning.interop.traker import import_traker
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.same_rows import require_scored
from trak_lightning.scoring.score_run import load_features, score_run
from trak_lightning.scoring.trak import Trak
from trak_lightning.stores.configured import open_store

N, K, M = 50, 8, 7


@pytest.fixture
def saved(tmp_path):
    """A save directory as traker 0.3.2's MmapSaver lays it out, and what is in it."""
    rng, folder = np.random.default_rng(0), tmp_path / "traker"
    folder.mkdir()
    (folder / "metadata.json").write_text(
        json.dumps({"JL dimension": K, "JL matrix type": "rademacher", "train set size": N})
    )
    (folder / "experiments.json").write_text(
        json.dumps({"val": {"num_targets": M, "scores_path": "", "scores_finalized": 1}})
    )
    contents = []
    for model in range(2):
        (folder / f"id_{model}.json").write_text(json.dumps({model: {"is_featurized": 1, "is_finalized": 1}}))
        part = folder / str(model)
        part.mkdir()
        arrays = {
            "grads": rng.standard_normal((N, K)),
            "out_to_loss": rng.random((N, 1)),
            "val_grads": rng.standard_normal((M, K)),
        }
        arrays = {name: values.astype(np.float16) for name, values in arrays.items()}
        for name, values in arrays.items():
            mapped = np.lib.format.open_memmap(part / f"{name}.mmap", mode="w+", dtype=np.float16, shape=values.shape)
            mapped[:] = values
            mapped.flush()
        contents.append({name: values.astype(np.float64) for name, values in arrays.items()})
    return folder, contents


def imported_run(folder, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir(exist_ok=True)
    store = open_store(run)
    return run, store, import_traker(folder, run, store)


def test_scores_are_those_of_the_papers_formula_on_what_was_saved(saved, tmp_path):
    folder, contents = saved
    run, store, imported = imported_run(folder, tmp_path)
    assert (imported.models, imported.targets) == ((0, 1), ("val",))
    scores, _ = score_run(run, store, Trak(regularization=0, weights="none"), targets="val")
    kernel = np.mean(
        [each["val_grads"] @ np.linalg.inv(each["grads"].T @ each["grads"]) @ each["grads"].T for each in contents],
        axis=0,
    )
    q = np.mean([each["out_to_loss"][:, 0] for each in contents], axis=0)
    np.testing.assert_allclose(scores.values, kernel * q, rtol=1e-3, atol=1e-5)


def test_outputs_and_curvatures_follow_from_the_loss_weights(saved, tmp_path):
    folder, contents = saved
    run, store, _ = imported_run(folder, tmp_path)
    for features, expected in zip(load_features(run, store, targets="val"), contents, strict=True):
        q = expected["out_to_loss"][:, 0]
        np.testing.assert_allclose(features.train.column("curvature"), q * (1 - q), rtol=1e-5)
        np.testing.assert_allclose(1 / (1 + np.exp(features.train.column("output"))), q, rtol=1e-4)


@pytest.mark.parametrize("name", ["val_grads", "out_to_loss"])
def test_other_rows_under_the_same_names_are_refused(name, saved, tmp_path):
    folder, _ = saved
    imported_run(folder, tmp_path)
    imported_run(folder, tmp_path)  # the same again
    rows = np.load(folder / "1" / f"{name}.mmap", mmap_mode="r+")
    rows[3] = 0.5
    rows.flush()
    with pytest.raises(IncompatibleRunError, match="was made with data"):
        imported_run(folder, tmp_path)


def test_scores_of_rows_that_were_imported_before_are_not_taken_for_those_of_today(saved, tmp_path):
    folder, _ = saved
    run, store, _ = imported_run(folder, tmp_path)
    scores, _ = score_run(run, store, Trak(), targets="val")
    require_scored(store, scores)
    rows = np.load(folder / "0" / "val_grads.mmap", mmap_mode="r+")
    rows[3] = 0.5
    rows.flush()
    shutil.rmtree(run.features)  # as the refusal says
    run, store, _ = imported_run(folder, tmp_path)
    with pytest.raises(StaleRowsError, match="of other targets than the scores"):
        require_scored(store, scores)
    assert score_run(run, store, Trak(), targets="val")[1]


def test_outputs_of_targets_are_not_known(saved, tmp_path):
    run, store, _ = imported_run(saved[0], tmp_path)
    scores, _ = score_run(run, store, Trak(), targets="val")
    assert scores.outputs(0) == {}
    assert "output" not in repr(scores[0])


def test_what_cannot_be_read_is_named(saved, tmp_path):
    folder, _ = saved
    with pytest.raises(IncompleteRunError, match=r"is not a save_dir of traker: there is no metadata.json"):
        imported_run(tmp_path, tmp_path)
    with (folder / "1" / "grads.mmap").open("wb") as file:
        np.save(file, np.zeros((3, K)))
    with pytest.raises(
        CorruptFileError, match=r"grads.mmap must have shape \(50, 8\), as the metadata says; it has \(3, 8\)"
    ):
        imported_run(folder, tmp_path)
    (folder / "1" / "grads.mmap").unlink()
    with pytest.raises(IncompleteRunError, match=r"deleted by finalize_features\(del_grads=True\)"):
        imported_run(folder, tmp_path)
    (folder / "id_1.json").write_text(json.dumps({1: {"is_featurized": 0}}))
    with pytest.raises(IncompleteRunError, match="model 1 in .* is not fully featurized"):
        imported_run(folder, tmp_path)


TRAKER = os.environ.get("TRAKER_PYTHON")

SCRIPT = """
import sys, numpy as np, torch
from trak import TRAKer
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(100, 10)).eval()
x, y = torch.randn(600, 1, 10, 10), torch.randint(0, 10, (600,))
traker = TRAKer(model=model, task="image_classification", train_set_size=600, save_dir=sys.argv[1], device="cpu",
                proj_dim=250, use_half_precision=False)
traker.load_checkpoint(model.state_dict(), model_id=0)
traker.featurize((x, y), num_samples=600)
traker.finalize_features()
traker.start_scoring_checkpoint("val", model.state_dict(), model_id=0, num_targets=6)
traker.score((x[:6] + 0.1, y[:6]), num_samples=6)
np.save(sys.argv[2], traker.finalize_scores("val"))
"""


@pytest.mark.slow
@pytest.mark.skipif(TRAKER is None, reason="needs TRAKER_PYTHON, the python of an environment with traker")
def test_what_traker_itself_saved_gives_its_own_scores_up_to_its_scale(tmp_path):
    subprocess.run(
        [TRAKER, "-c", SCRIPT, tmp_path / "traker", tmp_path / "theirs.npy"], check=True, capture_output=True
    )
    done = subprocess.run(
        [sys.executable, "-m", "trak_lightning", "import-traker", tmp_path / "traker", "--run_dir", tmp_path / "run"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "1 models × 600 training samples, k = 250; targets: val" in done.stdout
    run = RunDirectory(tmp_path / "run")
    scores, _ = score_run(run, open_store(run), Trak(regularization=0, weights="none"), targets="val")
    theirs = np.load(tmp_path / "theirs.npy").T
    # traker divides the inverse by the mean of its entries' magnitudes.
    scale = (scores.values * theirs).sum() / (theirs**2).sum()
    np.testing.assert_allclose(scores.values, scale * theirs, rtol=2e-3, atol=1e-4 * np.abs(scores.values).max())
