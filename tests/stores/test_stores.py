"""Every registered store obeys the laws; and what is special to files."""

import json
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest

from trak_lightning import registry
from trak_lightning.errors import CorruptFileError, NonFiniteGradientError, SettingsError, StorageError
from trak_lightning.stores.hdf5 import HDF5Store
from trak_lightning.testing import StoreConformance
from trak_lightning.testing.stores import SPEC, rows

for plugin in registry.scan()[0]:
    if plugin.kind == "stores" and plugin.distribution == "trak-lightning":
        globals()[f"Test{plugin.name.title()}"] = type(
            f"Test{plugin.name.title()}",
            (StoreConformance,),
            {"store": plugin.load(), "persistent": plugin.name != "memory"},
        )


class Wrong(HDF5Store):
    """An HDF5 store one method of whose feature sets is replaced by `wrong(the right method, …)`."""

    method = ""

    def create(self, spec):
        found = super().create(spec)
        right = getattr(found, self.method)
        setattr(found, self.method, lambda *args: self.wrong(right, *args))
        return found


class Forgets(Wrong):
    """Acknowledges blocks that it does not store."""

    method = "write_block"

    def wrong(self, right, block, rows):
        return None


class Leaks(Wrong):
    """Stores a row of another block."""

    method = "write_block"

    def wrong(self, right, block, rows):
        rows.output[0] = getattr(self, "last", rows.output[0])
        self.last = rows.output[-1]
        right(block, rows)


class SaysAllIsThere(Wrong):
    method = "missing_blocks"

    def wrong(self, right):
        return []


@pytest.mark.parametrize(
    ("wrong", "law"),
    [
        (Forgets, "test_blocks_are_missing_until_they_are_written"),
        (Leaks, "test_what_is_written_is_read_back_bit_for_bit"),
        (SaysAllIsThere, "test_blocks_are_missing_until_they_are_written"),
    ],
)
def test_a_wrong_store_fails_the_law_that_it_breaks(wrong, law, tmp_path):
    tests = type("TestWrong", (StoreConformance,), {"store": wrong})()
    store = wrong()
    store.bind(tmp_path / "features")
    with pytest.raises(AssertionError):
        getattr(tests, law)(store, tmp_path)


@pytest.fixture
def stored(tmp_path):
    store = HDF5Store()
    store.bind(tmp_path)
    created = store.create(SPEC)
    for block in range(3):
        created.write_block(block, rows(SPEC, block))
    return created


def test_a_stranger_reads_the_files_with_h5py_and_json_alone(stored, tmp_path):
    manifest = json.loads((tmp_path / "train/a1/manifest.json").read_text())
    assert (manifest["schema_version"], manifest["num_samples"], manifest["dim"]) == (1, 23, 5)
    with h5py.File(tmp_path / "train/a1/block-00002.h5") as file:
        assert {name: file[name].shape for name in file} == {
            "features": (7, 5),
            "index": (7,),
            "output": (7,),
            "loss_weight": (7,),
            "curvature": (7,),
        }
        assert file["index"][0] == 16
        np.testing.assert_array_equal(file["features"], rows(SPEC, 2).features)


@pytest.mark.parametrize("damage", ["truncated", "not hdf5", "of another set", "of another block"])
def test_a_damaged_block_is_refused_by_name(damage, stored, tmp_path):
    path = tmp_path / "train/a1/block-00001.h5"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "not hdf5":
        path.write_text("not HDF5")
    elif damage == "of another block":
        shutil.copy(tmp_path / "train/a1/block-00000.h5", path)
    else:
        store = HDF5Store()
        store.bind(tmp_path / "other")
        other = replace(SPEC, fingerprint={"seed": 1})
        store.create(other).write_block(1, rows(other, 1))
        shutil.copy(tmp_path / "other/train/a1/block-00001.h5", path)
    with pytest.raises(CorruptFileError, match=r"block-00001.h5 is not the block .*Delete the file"):
        stored.read_block(1)


def test_a_damaged_manifest_is_refused_by_name(stored, tmp_path):
    (tmp_path / "train/a1/manifest.json").write_text("{}")
    store = HDF5Store()
    store.bind(tmp_path)
    with pytest.raises(CorruptFileError, match=r"manifest.json is not a manifest"):
        store.open("train", "a1")


def test_overflow_of_the_stored_type_is_refused_and_never_an_infinity(stored):
    large = rows(SPEC, 0)
    large = replace(large, features=large.features.astype(np.float64) * 1e39)
    with pytest.raises(NonFiniteGradientError, match="overflow float32"):
        stored.write_block(0, large)


def test_an_unknown_type_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match="dtype must be one of float32, float64, got 'int3'"):
        HDF5Store("int3")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden"])
def test_names_that_leave_the_folder_are_refused(name, tmp_path):
    store = HDF5Store()
    store.bind(tmp_path)
    with pytest.raises(StorageError, match="cannot name a folder"):
        store.create(replace(SPEC, split=name))
