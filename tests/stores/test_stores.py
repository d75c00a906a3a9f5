"""Every registered store obeys the laws; and what is special to files."""

import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from trak_lightning import registry
from trak_lightning.cli import main
from trak_lightning.errors import CorruptFileError, NonFiniteGradientError, SettingsError, StorageError
from trak_lightning.run.directory import CheckpointRecord, RunDirectory, RunRecord
from trak_lightning.stores.configured import open_store
from trak_lightning.stores.encoding import DTYPES
from trak_lightning.stores.hdf5 import HDF5Store
from trak_lightning.stores.memory import MemoryStore
from trak_lightning.stores.schema import checksum
from trak_lightning.testing import StoreConformance
from trak_lightning.testing.stores import SPEC, filled_store, rows

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
    assert (manifest["schema_version"], manifest["num_samples"], manifest["dim"]) == (2, 23, 5)
    with h5py.File(tmp_path / "train/a1/block-00002.h5") as file:
        assert {name: file[name].shape for name in file} == {
            "features": (7, 5),
            "output": (7,),
            "loss_weight": (7,),
            "curvature": (7,),
            "content": (7,),
        }
        assert json.loads(file.attrs["block"])["start"] == 16
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


def test_the_type_of_a_set_that_does_not_say_is_that_of_a_stored_block():
    created = MemoryStore().create(SPEC)
    assert created.dtype == "float32"
    created.write_block(1, replace(rows(SPEC, 1), features=rows(SPEC, 1).features.astype(np.float64)))
    assert created.dtype == "float64"


def test_all_features_are_a_tensor_as_scripts_of_earlier_versions_read_them(stored):
    features = stored.tensor()
    np.testing.assert_array_equal(features.numpy(), stored.rows(0, stored.spec.num_samples).features)


def test_an_unknown_type_is_refused_with_the_known_ones():
    with pytest.raises(
        SettingsError, match="dtype must be one of float32, float64, float16, bfloat16, int8, got 'int3'"
    ):
        HDF5Store("int3")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden"])
def test_names_that_leave_the_folder_are_refused(name, tmp_path):
    store = HDF5Store()
    store.bind(tmp_path)
    with pytest.raises(StorageError, match="cannot name a folder"):
        store.create(replace(SPEC, split=name))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_arrays_begin_where_they_can_be_mapped(dtype, tmp_path):
    spec = replace(SPEC, dim=3001)
    created = filled_store(HDF5Store(dtype), tmp_path, spec)
    for path in created.folder.glob("block-*.h5"):
        with h5py.File(path) as file:
            assert file["features"].id.get_offset() % 64 == 0


def test_reading_holds_a_few_blocks_however_many_there_are(tmp_path):
    spec = replace(SPEC, num_samples=64 * 64, dim=256, batch_size=64, block_size=64)
    created = filled_store(HDF5Store(), tmp_path, spec)
    tracemalloc.start()
    rows_read = sum(len(block) for block in created.blocks(ahead=2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one = 64 * 256 * 4
    assert rows_read == spec.num_samples
    assert peak < 8 * one  # of 64 blocks


def test_run_directories_that_hold_parts_are_merged_to_one_file(tmp_path, capsys):
    whole = filled_store(HDF5Store(), tmp_path / "whole/features")
    for name, blocks in (("one", (0, 2)), ("two", (1, 2))):
        store = HDF5Store()
        store.bind(tmp_path / name / "features")
        part = store.create(SPEC)
        for block in blocks:
            part.write_block(block, rows(SPEC, block))
    one, two, output = (str(tmp_path / name) for name in ("one", "two", "merged.h5"))
    assert main(["merge", one, "--output", output]) == 1
    assert "samples 8–15" in capsys.readouterr().err
    assert main(["merge", one, two, "--output", output]) == 0
    with h5py.File(output) as file:
        merged = file["features/train/a1"]
        np.testing.assert_array_equal(merged["features"], whole.rows(0, 23).features)
        for name in ("output", "loss_weight", "curvature"):
            np.testing.assert_array_equal(merged[name], whole.column(name))
        pieces = np.split(merged["features"][()], [8, 16])
        assert [text.decode() for text in merged["xxh3_64/features"]] == list(map(checksum, pieces))
    assert main(["merge", one, two, "--output", output]) == 1
    assert "merged.h5 exists" in capsys.readouterr().err
    part.write_block(2, replace(rows(SPEC, 2), output=np.zeros(7, np.float32)))
    assert main(["merge", one, two, "--output", str(tmp_path / "other.h5")]) == 1
    assert "block 2 of train/a1 is in several run directories, with different rows" in capsys.readouterr().err
    assert not (tmp_path / "other.h5").exists()


LASTING = [name for name in registry.names("stores") if name != "memory"]


@pytest.mark.parametrize("dtype", ["float64", "int8"])
@pytest.mark.parametrize("name", LASTING)
def test_features_are_moved_to_any_store_and_back_bit_for_bit(name, dtype, tmp_path):
    source = RunDirectory(tmp_path / "run")
    stored = filled_store(HDF5Store(dtype), source.features)
    source.write(RunRecord(checkpoints=(CheckpointRecord("a1", "a.ckpt"),)))
    source.write_subset("a1", np.arange(5))
    source.config.write_text(
        yaml.safe_dump({"seed": 3, "store": {"class_path": "trak_lightning.stores.hdf5.HDF5Store"}})
    )
    there, back = str(tmp_path / "there"), str(tmp_path / "back")
    assert main(["merge", str(source.path), "--to", name, "--output", there]) == 0
    assert main(["verify", there]) == 0  # with the store that its own configuration names
    assert main(["merge", there, "--to", "hdf5", "--output", back]) == 0
    for path in (there, back):
        found = open_store(RunDirectory(path)).open("train", "a1")
        assert found.spec == SPEC
        np.testing.assert_array_equal(found.rows(0, 23).features, stored.rows(0, 23).features)
        np.testing.assert_array_equal(found.column("output"), stored.column("output"))
        assert RunDirectory(path).read().checkpoints == source.read().checkpoints
        assert RunDirectory(path).read_subset("a1").tolist() == list(range(5))
    assert {path.name: path.read_bytes() for path in stored.folder.glob("block-*")} == {
        path.name: path.read_bytes() for path in Path(back).rglob("block-*")
    }


def test_features_are_not_moved_to_a_store_that_forgets_them(tmp_path, capsys):
    filled_store(HDF5Store(), tmp_path / "run/features")
    assert main(["merge", str(tmp_path / "run"), "--to", "memory", "--output", str(tmp_path / "x")]) == 1
    assert "memory has not kept train/a1; choose a store that lasts" in capsys.readouterr().err
