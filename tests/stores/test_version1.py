"""Run directories written before rows had content hashes: `version1` was made by trak_lightning at commit 2df6761.

It holds seven samples of three features, in blocks of four: row i has features 10·i + (0, 1, 2), output i/2, loss weight i/4 and
curvature i/8.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from trak_lightning.cli import main
from trak_lightning.run.directory import RunDirectory
from trak_lightning.stores.base import FeatureRows
from trak_lightning.stores.configured import open_store


@pytest.fixture
def run(tmp_path):
    shutil.copytree(Path(__file__).parent / "version1", tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def some_rows(samples, content):
    index = np.array(samples)
    features = (np.arange(3) + 10 * index[:, None]).astype(np.float32)
    return FeatureRows(index, features, *(np.float32(index / part) for part in (2, 4, 8)), content=content)


def test_it_opens_and_its_content_is_unknown(run):
    found = open_store(run).open("train", "a1")
    expected = some_rows(range(7), np.zeros(7, np.uint64))
    read = found.rows(0, 7)
    for name in ("index", "features", "output", "loss_weight", "curvature", "content"):
        np.testing.assert_array_equal(getattr(read, name), getattr(expected, name))
        if name not in ("index", "features"):
            np.testing.assert_array_equal(found.column(name), getattr(expected, name))
    np.testing.assert_array_equal(found.take([6, 0]), expected.features[[6, 0]])
    assert found.column("content").dtype == np.uint64
    assert run.read().checkpoints[0].source == "a.ckpt"
    assert run.read_subset("a1").tolist() == [0, 2, 4]
    for command in ("verify", "info"):
        assert main([command, str(run.path)]) == 0


def test_it_is_resumed_and_grown_with_the_content_of_new_rows(run):
    store = open_store(run)
    spec = store.open("train", "a1").spec
    (run.features / "train/a1/block-00000.h5").unlink()
    resumed = store.create(spec)
    assert resumed.missing_blocks() == [0]
    resumed.write_block(0, some_rows(range(4), np.arange(1, 5, dtype=np.uint64)))
    assert resumed.column("content").tolist() == [1, 2, 3, 4, 0, 0, 0]
    grown = store.grow(spec, replace(spec, num_samples=8))
    assert grown.missing_blocks() == [1]
    assert grown.known_rows(1).content.tolist() == [0, 0]
    grown.write_block(1, some_rows(range(4, 8), np.arange(5, 9, dtype=np.uint64)))
    assert grown.column("content").tolist() == list(range(1, 9))
    assert main(["verify", str(run.path)]) == 0


def test_copies_of_its_blocks_are_merged_with_new_ones_and_moved_to_the_present_version(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "other")
    known = np.arange(1, 5, dtype=np.uint64)
    open_store(RunDirectory(tmp_path / "other")).open("train", "a1").write_block(0, some_rows(range(4), known))
    paths = [str(tmp_path / "other"), str(run.path)]
    assert main(["merge", *paths, "--output", str(tmp_path / "merged.h5")]) == 0
    with h5py.File(tmp_path / "merged.h5") as file:
        assert file["features/train/a1/content"][()].tolist() == [1, 2, 3, 4, 0, 0, 0]
    moved = tmp_path / "moved"
    assert main(["merge", str(run.path), "--to", "hdf5", "--output", str(moved)]) == 0
    assert json.loads((moved / "features/train/a1/manifest.json").read_text())["schema_version"] == 2
    np.testing.assert_array_equal(
        open_store(RunDirectory(moved)).open("train", "a1").rows(0, 7).features,
        some_rows(range(7), np.zeros(7, np.uint64)).features,
    )


def test_copies_of_a_block_with_different_content_are_refused(run, tmp_path, capsys):
    shutil.copytree(run.path, tmp_path / "other")
    for path, start in ((run.path, 1), (tmp_path / "other", 2)):
        content = np.arange(start, start + 4, dtype=np.uint64)
        open_store(RunDirectory(path)).open("train", "a1").write_block(0, some_rows(range(4), content))
    paths = [str(tmp_path / "other"), str(run.path)]
    assert main(["merge", *paths, "--output", str(tmp_path / "merged.h5")]) == 1
    assert "block 0 of train/a1 is in several run directories, with different rows" in capsys.readouterr().err


def test_a_version_that_does_not_exist_yet_is_refused(run, capsys):
    path = run.features / "train/a1/block-00000.h5"
    with h5py.File(path, "r+") as file:
        described = json.loads(file.attrs["block"])
        file.attrs["block"] = np.bytes_(json.dumps({**described, "schema_version": 3}).encode())
    assert main(["verify", str(run.path)]) == 1
    assert "its schema_version is 3, and 2 was expected" in capsys.readouterr().out
