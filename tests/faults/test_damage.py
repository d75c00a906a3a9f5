"""Files that are cut short, altered or deleted, and folders that cannot be written to."""

import os
import random
import shutil
import signal
import time

import pytest
from faults import acknowledged, in_the_background, of_a_terminal, rows

from trak_lightning.cli import main
from trak_lightning.errors import CorruptFileError, TrakError
from trak_lightning.stores.hdf5 import HDF5Store
from trak_lightning.testing.stores import SPEC
from trak_lightning.testing.stores import rows as some_rows


@pytest.fixture
def stored(tmp_path):
    store = HDF5Store()
    store.bind(tmp_path / "features")
    created = store.create(SPEC)
    for block in range(3):
        created.write_block(block, some_rows(SPEC, block))
    return tmp_path


def read(run_dir):
    """All rows, as bytes; an error of ours if anything is wrong."""
    store = HDF5Store()
    store.bind(run_dir / "features")
    found = store.open("train", "a1")
    assert found.spec == SPEC
    return [block.features.tobytes() + block.output.tobytes() for block in found.blocks()]


@pytest.mark.parametrize("name", ["block-00001.h5", "manifest.json"])
def test_a_file_cut_short_anywhere_is_refused(name, stored):
    path = stored / "features/train/a1" / name
    whole = path.read_bytes()
    for length in sorted({*range(0, len(whole), max(1, len(whole) // 150)), len(whole) - 1}):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError):
            read(stored)
    assert main(["verify", str(stored)]) == 1


@pytest.mark.parametrize("name", ["block-00001.h5", "manifest.json"])
def test_a_flipped_byte_anywhere_is_refused_or_changes_no_row(name, stored):
    path, expected, generator = stored / "features/train/a1" / name, read(stored), random.Random(0)
    whole = path.read_bytes()
    for position in generator.sample(range(len(whole)), min(len(whole), 600)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            assert read(stored) == expected
        except TrakError:
            continue


def test_verify_finds_what_is_missing_and_what_is_too_many(stored, capsys):
    assert main(["verify", str(stored)]) == 0
    folder = stored / "features/train/a1"
    shutil.copy(folder / "block-00001.h5", folder / "block-00007.h5")
    assert main(["verify", str(stored)]) == 1
    (folder / "block-00007.h5").unlink()
    (folder / "block-00001.h5").unlink()
    assert main(["verify", str(stored)]) == 1
    assert "samples 8–15 are missing" in capsys.readouterr().out
    assert main(["info", str(stored)]) == 0
    assert "8–15" in capsys.readouterr().out


def test_two_jobs_fill_one_run_directory_and_share_its_blocks(job, whole, tmp_path):
    processes = [job.fork(tmp_path / "run") for _ in range(2)]
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0]
    assert rows(tmp_path / "run") == whole


@pytest.mark.parametrize(
    ("number", "before", "code"),
    [
        (signal.SIGTERM, None, 143),
        (signal.SIGINT, of_a_terminal, 130),
        (signal.SIGINT, in_the_background, 0),  # to which Ctrl+C is not addressed
    ],
    ids=["SIGTERM", "SIGINT", "SIGINT, ignored"],
)
def test_a_run_that_is_asked_to_end_ends_and_can_be_resumed(number, before, code, job, whole, tmp_path):
    process = job.fork(tmp_path / "run", before=before)
    while not len(acknowledged(tmp_path / "run")) >= 3:
        assert process.is_alive()
        time.sleep(0.002)
    os.kill(process.pid, number)
    process.join(600)
    there = acknowledged(tmp_path / "run")
    assert (process.exitcode, len(there) < len({path for path, _ in whole})) == (code, code != 0)
    assert job.finish(tmp_path / "run")[0] == 0
    assert there.items() <= acknowledged(tmp_path / "run").items()
    assert rows(tmp_path / "run") == whole
