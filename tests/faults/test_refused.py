"""What the operating system refuses: full disks, limits, permissions; and clocks that cannot be trusted."""

import errno
import os
import resource
import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from faults import acknowledged, clock_in_1970, mount, rows, small_disk, trak, without_privileges

from trak_lightning.cli import main
from trak_lightning.errors import StorageError
from trak_lightning.scoring.base import Scoring
from trak_lightning.scoring.scores import write_scores
from trak_lightning.stores.hdf5 import HDF5Store
from trak_lightning.testing.stores import SPEC, filled_store
from trak_lightning.testing.stores import rows as some_rows


@contextmanager
def limit(which, value):
    """A limit of this process."""
    before = resource.getrlimit(which)
    resource.setrlimit(which, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, before)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("step", [41, pytest.param(1, marks=pytest.mark.slow)])
def test_a_write_that_fails_at_any_byte_leaves_nothing_behind_and_harms_nothing(step, tmp_path):
    created = filled_store(HDF5Store(), tmp_path)
    before = contents(tmp_path)
    size = (created.folder / "block-00001.h5").stat().st_size
    for most in range(0, size, step):
        with limit(resource.RLIMIT_FSIZE, most), pytest.raises(StorageError, match="block-00001.h5"):
            created.write_block(1, some_rows(SPEC, 1))
        assert len(list(created.folder.iterdir())) == 4  # three blocks and the manifest
    assert contents(tmp_path) == before
    with limit(resource.RLIMIT_FSIZE, size):
        created.write_block(1, some_rows(SPEC, 1))
    assert contents(tmp_path) == before


class Unasked(Scoring):
    def __init__(self):
        self.num_targets, self.num_train, self.settings = 4, 1000, {}

    def tiles(self, start, stop):
        raise AssertionError("scores were computed that there is no room for")


def test_scores_that_do_not_fit_are_refused_before_any_is_computed(tmp_path):
    with small_disk(tmp_path / "disk", pages=3) as disk:
        with pytest.raises(StorageError, match="scores.h5.*the disk is full"):
            write_scores(disk / "scores.h5", Unasked(), {})
        assert not contents(disk)


def test_a_disk_that_is_full_at_any_write_keeps_what_was_acknowledged(tmp_path):
    expected = contents(filled_store(HDF5Store(), tmp_path / "roomy").folder)
    refused = 0
    for pages in range(1, 12):
        with small_disk(tmp_path / "disk", pages) as disk:
            store = HDF5Store()
            store.bind(disk / "features")
            acknowledged_blocks = []
            try:
                created = store.create(SPEC)
                for block in range(3):
                    created.write_block(block, some_rows(SPEC, block))
                    acknowledged_blocks.append(block)
            except StorageError as error:
                refused += "the disk is full; free space and run the same command again" in str(error)
            mount("-o", "remount,size=1m", disk)
            created = store.create(SPEC)
            assert created.missing_blocks() == [block for block in range(3) if block not in acknowledged_blocks]
            for block in created.missing_blocks():
                created.write_block(block, some_rows(SPEC, block))
            assert contents(created.folder) == expected
    assert 3 <= refused < 11


@pytest.mark.parametrize("pages", [pytest.param(1, marks=pytest.mark.slow), 40])
def test_a_run_on_a_full_disk_fails_and_resumes_when_there_is_room(pages, job, whole, tmp_path):
    with small_disk(tmp_path / "disk", pages) as disk:
        log = tmp_path / "log"
        code, output = job.finish(disk / "run", log=log)
        assert (code, "the disk is full" in output) == (1, True), output
        there = acknowledged(disk / "run")
        mount("-o", "remount,size=8m", disk)
        code, output = job.finish(disk / "run", log=log)
        assert code == 0, output
        assert there.items() <= acknowledged(disk / "run").items()
        assert rows(disk / "run") == whole


def test_a_read_only_file_system_is_named(job, tmp_path):
    with small_disk(tmp_path / "disk", 4) as disk:
        mount("-o", "remount,ro", disk)
        code, output = job.finish(disk / "run", log=tmp_path / "log")
        assert (code, "the file system is read-only; choose another run directory" in output) == (1, True), output


def test_a_folder_without_permission_is_named_and_the_run_resumes_with_it(job, whole, tmp_path):
    run_dir = tmp_path / "run"
    process = job.fork(run_dir)
    while len(acknowledged(run_dir)) < 3:
        assert process.is_alive()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    there = acknowledged(run_dir)
    closed = list(run_dir.glob("features/train/*"))
    for path in closed:
        path.chmod(0o555)
    code, output = job.finish(run_dir, before=without_privileges)
    for path in closed:
        path.chmod(0o755)
    assert (code, "permission denied" in output) == (1, True), output
    assert there.items() <= acknowledged(run_dir).items()
    code, output = job.finish(run_dir, before=without_privileges)
    assert code == 0, output
    assert rows(run_dir) == whole


NOT_STORED = {
    "suspects": ["suspects"],
    "what_if.npz": ["whatif", "--remove", "3"],
    "report/test.html": ["report"],
}


def test_a_finished_run_may_be_read_only_and_what_cannot_be_stored_is_not_computed(job, tmp_path):
    run_dir = tmp_path / "run"
    assert job.finish(run_dir)[0] == 0
    assert trak("score", run_dir).returncode == 0
    before = contents(run_dir)
    for path in (run_dir, *run_dir.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    done = trak("featurize", run_dir, before=without_privileges)
    assert (done.returncode, "already finished" in done.stdout) == (0, True), done.stderr
    for place, command in NOT_STORED.items():
        done = trak(command[0], run_dir, *command[1:], before=without_privileges)
        expected = f"StorageError: cannot write {run_dir / place}: permission denied; choose another"
        assert (done.returncode, expected in done.stderr) == (1, True), done.stderr
    assert contents(run_dir) == before


def test_clocks_do_not_matter(job, whole, tmp_path):
    run_dir = tmp_path / "run"
    process = job.fork(run_dir)
    while len(acknowledged(run_dir)) < 4:
        assert process.is_alive()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    there = acknowledged(run_dir)
    for path in run_dir.rglob("*"):
        os.utime(path, (4e9, 4e9))  # in the year 2096
    code, output = job.finish(run_dir, before=clock_in_1970)
    assert code == 0, output
    assert there.items() <= acknowledged(run_dir).items()
    assert rows(run_dir) == whole


@pytest.mark.parametrize("blocks", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_more_block_files_than_a_process_may_open(blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "trak_lightning.run.atomic.fsync", lambda path: None
    )  # of the many files that are only made here
    spec = replace(SPEC, num_samples=blocks * 2, batch_size=2, block_size=2)
    with limit(resource.RLIMIT_NOFILE, 256):
        created = filled_store(HDF5Store(), tmp_path / "features", spec)
        assert all(not created.claim(block) for block in range(spec.num_blocks))
        assert created.complete
        everything = created.rows(0, spec.num_samples).features
        assert (created.take(range(spec.num_samples)) == everything).all()
        assert len(created.column("output")) == spec.num_samples
        assert sum(len(block) for block in created.blocks(ahead=8)) == spec.num_samples
        assert main(["verify", str(tmp_path)]) == 0
        assert main(["merge", str(tmp_path), "--output", str(tmp_path / "features.h5")]) == 0


def test_many_claims_need_one_descriptor(tmp_path):
    store = HDF5Store()
    store.bind(tmp_path)
    created = store.create(SPEC)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert all(created.claim(block) for block in range(3))
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    for block in range(3):
        created.release(block)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_the_operating_system_says_is_passed_on(tmp_path, monkeypatch):
    created = filled_store(HDF5Store(), tmp_path)

    def refuse(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("trak_lightning.run.atomic.fsync", refuse)
    with pytest.raises(StorageError, match=r"cannot write .*block-00000.h5: Input/output error: what is stored so far"):
        created.write_block(0, some_rows(SPEC, 0))
