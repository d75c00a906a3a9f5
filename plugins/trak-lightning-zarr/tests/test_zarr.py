"""The laws of feature stores, in a folder, in memory and on a server that speaks S3; and what is special to Zarr."""

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr
from moto.server import ThreadedMotoServer
from trak_lightning_zarr import ZarrStore

from trak_lightning.cli import main
from trak_lightning.errors import CorruptFileError, IncompatibleRunError, IncompleteRunError, StorageError, TrakError
from trak_lightning.stores.encoding import DTYPES, decode, encode
from trak_lightning.testing import StoreConformance
from trak_lightning.testing.stores import SPEC, filled_store, rows


class TestFolder(StoreConformance):
    store = ZarrStore


class TestMemory(StoreConformance):
    store = staticmethod(lambda: ZarrStore("memory://bucket/features"))

    @pytest.fixture(autouse=True)
    def empty(self):
        fsspec.filesystem("memory").store.clear()
        fsspec.filesystem("memory").pseudo_dirs[:] = [""]


@pytest.fixture(scope="module")
def server():
    """Options of a server that speaks S3, in a thread of this process."""
    started = ThreadedMotoServer("127.0.0.1", port=0)
    started.start()
    host, port = started.get_host_and_port()
    yield {"endpoint_url": f"http://{host}:{port}", "key": "any", "secret": "any"}
    started.stop()


@pytest.fixture
def bucket(server, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    files = fsspec.filesystem("s3", **server)
    if files.exists("features"):
        files.rm("features", recursive=True)
    files.mkdir("features")
    return server


@pytest.mark.slow  # a hundred requests a law; a whole run below makes each kind of request
class TestS3(StoreConformance):
    @pytest.fixture(autouse=True)
    def store_on_server(self, bucket):
        type(self).store = staticmethod(lambda: ZarrStore("s3://features/run", storage_options=bucket))


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_is_stored_and_read_in_every_way(dtype, compression, tmp_path):
    created = filled_store(ZarrStore(dtype=dtype, compression=compression), tmp_path)
    expected = np.concatenate([decode(*encode(rows(SPEC, block).features, dtype), dtype) for block in range(3)])
    np.testing.assert_array_equal(np.concatenate([block.features for block in created.blocks()]), expected)
    np.testing.assert_array_equal(created.take([22, 3, 3, 9]), expected[[22, 3, 3, 9]])


def test_a_stranger_reads_arrays_with_zarr_alone(tmp_path):
    created = filled_store(ZarrStore(), tmp_path)
    group = zarr.open_group(tmp_path / "features.zarr/train/a1", mode="r")
    assert group.attrs["trak_lightning"]["num_samples"] == group["features"].shape[0] == 23
    np.testing.assert_array_equal(group["features"][:], created.rows(0, 23).features)
    np.testing.assert_array_equal(group["curvature"][:], created.column("curvature"))
    assert group["blocks"][:, 2].tolist() == [8, 8, 7]


def test_a_zip_file_is_read_and_never_written(tmp_path):
    folder = tmp_path / "features"
    filled_store(ZarrStore(), folder)
    command = [sys.executable, "-m", "trak_lightning_zarr", folder / "features.zarr", folder / "features.zip"]
    assert [subprocess.run(command, check=False).returncode for _ in range(2)] == [0, 1]  # never over another file
    shutil.rmtree(folder / "features.zarr")
    for name in ("info", "verify"):
        assert main([name, str(tmp_path), "--store", "{name: zarr, url: features.zip}"]) == 0
    store = ZarrStore("features.zip")
    store.bind(folder)
    assert store.list() == [("train", "a1")]
    found = store.create(SPEC)
    assert (found.complete, found.claim(0)) == (True, False)
    for block in range(3):
        np.testing.assert_array_equal(found.read_block(block).features, rows(SPEC, block).features)
    for write in (lambda: found.write_block(0, rows(SPEC, 0)), lambda: store.create(replace(SPEC, split="test"))):
        with pytest.raises(StorageError, match=r"is a zip file, and these are only read.*FOLDER FILE\.zip"):
            write()


def test_a_record_is_written_last_and_is_all_that_makes_a_block_whole(tmp_path, monkeypatch):
    created = filled_store(ZarrStore(), tmp_path)
    folder = tmp_path / "features.zarr/train/a1"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    written = []

    def put(array, selection, value, right=zarr.Array.__setitem__):
        if array.basename == "curvature":
            raise OSError(28, "No space left on device")
        written.append(array.basename)
        right(array, selection, value)

    monkeypatch.setattr(zarr.Array, "__setitem__", put)
    with pytest.raises(StorageError, match="the disk is full"):
        created.write_block(1, rows(SPEC, 2 - 1))
    assert written == ["blocks", "features", "output", "loss_weight"]
    monkeypatch.undo()
    assert created.missing_blocks() == [1]
    with pytest.raises(IncompleteRunError, match="block 1 of"):
        created.read_block(1)
    created.write_block(1, rows(SPEC, 1))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["features/c/1/0", "output/c/1", "blocks/c.1.0", "features/zarr.json", "zarr.json"])
def test_a_file_cut_short_altered_or_deleted_is_refused_or_its_block_is_missing(name, tmp_path):
    expected = [
        block.features.tobytes() + block.output.tobytes() for block in filled_store(ZarrStore(), tmp_path).blocks()
    ]
    path = tmp_path / "features.zarr/train/a1" / name
    whole, refused = path.read_bytes(), 0
    damaged = [None, *(whole[:length] for length in range(0, len(whole), max(1, len(whole) // 6)))]
    for position in range(0, len(whole), max(1, len(whole) // 10)):
        damaged.append(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
    for content in damaged:
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        store = ZarrStore()
        store.bind(tmp_path)
        try:
            found = store.open("train", "a1")
            assert [block.features.tobytes() + block.output.tobytes() for block in found.blocks()] == expected
        except TrakError:
            refused += 1
    assert refused > len(damaged) // 2


def test_an_array_that_claims_to_be_huge_is_refused_before_room_is_made_for_it(tmp_path):
    store = ZarrStore()
    store.bind(tmp_path)
    huge = replace(SPEC, num_samples=2**40, block_size=2**36, batch_size=2**36)
    created = store.create(huge)
    created._arrays["blocks"][0] = [int(created.manifest.set_id, 16), 0, 2**36, 0, 0, 0, 0, 0, 0]
    with pytest.raises(CorruptFileError):
        created.read_block(0)


def test_an_array_with_a_strange_codec_is_refused(tmp_path):
    filled_store(ZarrStore(), tmp_path)
    path = tmp_path / "features.zarr/train/a1/output/zarr.json"
    metadata = json.loads(path.read_text())
    metadata["codecs"].append({"name": "gzip", "configuration": {"level": 1}})
    path.write_text(json.dumps(metadata))
    store = ZarrStore()
    store.bind(tmp_path)
    with pytest.raises(CorruptFileError, match="its output is encoded with gzip"):
        store.open("train", "a1").read_block(0)


def test_runs_that_share_an_address_share_equal_sets_and_refuse_others(tmp_path):
    url = str(tmp_path / "shared.zarr")
    filled_store(ZarrStore(url), tmp_path / "one")
    other = ZarrStore(url)
    other.bind(tmp_path / "two")
    assert other.create(SPEC).complete
    assert other.elsewhere == url
    with pytest.raises(IncompatibleRunError, match="seed = 0, and 1"):
        other.create(replace(SPEC, fingerprint={**SPEC.fingerprint, "seed": 1}))


def test_what_a_killed_writer_left_is_reported_and_goes_when_its_block_is_written(tmp_path):
    created = filled_store(ZarrStore(), tmp_path)
    left = tmp_path / "features.zarr/train/a1/output/c/1.0123.partial"
    left.write_text("half")
    assert len(created.strays()) == 1
    created.write_block(0, rows(SPEC, 0))
    assert len(created.strays()) == 1
    created.write_block(1, rows(SPEC, 1))
    assert created.strays() == []


CONFIG = """
model: {class_path: trak_lightning.demos.DigitsCNN, init_args: {width: 4}}
data: {class_path: trak_lightning.demos.DigitsDataModule, init_args: {num_targets: 20}}
trainer: {accelerator: cpu, max_epochs: 1}
ensemble: {size: 1}
projector: {name: sparse_jl, dim: 64}
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of jsonargparse, on LightningCLI
def test_a_whole_run_keeps_its_features_on_a_server(bucket, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", bucket["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", bucket["secret"])
    options = {"name": "zarr", "url": "s3://features/run", "storage_options": {"endpoint_url": bucket["endpoint_url"]}}
    run_dir, config = tmp_path / "run", tmp_path / "run.yaml"
    config.write_text(f"{CONFIG}store: {json.dumps(options)}\nrun_dir: {run_dir}\n")
    for command in ("train", "featurize", "score"):
        assert main([command, "--config", str(config)]) == 0
    for command in ("info", "verify"):
        assert main([command, str(run_dir)]) == 0
    assert main(["merge", str(run_dir), "--output", str(tmp_path / "features.h5")]) == 0
    files = fsspec.filesystem("s3", **bucket)
    (record,) = files.glob("features/run/train/*/blocks/c.0.0")
    files.rm(record)
    assert main(["verify", str(run_dir)]) == 1
    assert "samples 0–1023 are missing" in capfd.readouterr().out
    # The run directory looks as it did, and yet the command sees that there is something to do.
    assert main(["featurize", "--config", str(config)]) == 0
    assert main(["verify", str(run_dir)]) == 0
    assert "s3://features/run (1024 computed" in capfd.readouterr().out
    shutil.rmtree(run_dir / "features", ignore_errors=True)  # locks, and nothing else
    assert main(["verify", str(run_dir)]) == 0


def test_a_set_of_schema_version_1_is_read_resumed_and_grown_without_content(tmp_path):
    """`version1.zip` holds one of two blocks; its rows are those of tests/stores/version1."""
    place = tmp_path / "features.zarr"
    with zipfile.ZipFile(Path(__file__).parent / "version1.zip") as archive:
        archive.extractall(place)
    store = ZarrStore()
    store.bind(tmp_path)
    found = store.open("train", "a1")
    assert found.missing_blocks() == [1]
    first = found.read_block(0)
    np.testing.assert_array_equal(first.features, np.arange(3) + 10 * np.arange(4)[:, None])
    assert first.content.tolist() == [0, 0, 0, 0]
    resumed = store.create(found.spec)
    resumed.write_block(1, rows(found.spec, 1))
    np.testing.assert_array_equal(resumed.read_block(1).features, rows(found.spec, 1).features)
    assert resumed.column("content").tolist() == [0] * 7
    grown = store.grow(found.spec, replace(found.spec, num_samples=9))
    assert grown.missing_blocks() == [1, 2]
    np.testing.assert_array_equal(grown.read_block(0).output, first.output)
