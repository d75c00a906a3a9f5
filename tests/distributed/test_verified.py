"""Rows that are no longer true are refused by every kind of job, and repaired by any."""

import re
import shutil
from pathlib import Path

import pytest
from faults import acknowledged, rows, with_tanh
from groups import finish, start, torchrun

KINDS = {
    "one process": lambda job, run_dir, *more, **options: [job.fork(run_dir, *more, **options)],
    "a shard": lambda job, run_dir, *more, **options: [job.fork(run_dir, *more, "--shard", "2/3", **options)],
    "two ranks": lambda job, run_dir, *more, **options: start(job, run_dir, 2, torchrun, *more, **options),
}
CHANGES = {
    "labels": (
        ("--data.label_noise", "0.01"),
        None,
        "3 samples of 'train' are not what the stored rows were computed from: 8, 69, 96",
    ),
    "code": ((), with_tanh, "the stored rows of 'train' under checkpoint .* are not what .* computed again, the"),
}


@pytest.mark.parametrize("change", [pytest.param("labels", marks=pytest.mark.slow), "code"])
def test_stale_rows_are_refused_by_every_kind_of_job_and_repaired_by_any(change, job, tmp_path):
    run_dir, (changed, before, message) = tmp_path / "run", CHANGES[change]
    # A copy, because of the original it is known that it was trained on all samples.
    checkpoint = shutil.copy(job.checkpoints[0], tmp_path / "copy.ckpt")
    some = ("--checkpoints", f"[{checkpoint}]", "--data", "growing.SomeDigits", "--data.num_train", "160")
    options = (*some, *changed)
    code, output = job.finish(run_dir, *some)
    assert code == 0, output
    there = acknowledged(run_dir)
    assert finish(start(job, run_dir, 2, torchrun, *some)) == [0, 0]  # whose nothing is missing
    assert acknowledged(run_dir) == there
    lost = next(run_dir.glob("features/test/*/block-00001.h5"))
    del there[lost]
    lost.unlink()
    for kind, begin in KINDS.items():
        codes = finish(begin(job, run_dir, *options, before=before))
        assert set(codes) == {1}, kind
        for rank in range(len(codes)):
            said = Path(f"{run_dir}-{rank}.log" if len(codes) > 1 else f"{run_dir}.log").read_text()
            assert re.search(message, said), (kind, rank, said)
            assert "Traceback" not in said
        assert acknowledged(run_dir) == there, kind  # not even what is missing is computed
    assert finish(start(job, run_dir, 2, torchrun, *options, "--repair", "true", before=before)) == [0, 0]
    for shard in ("2/2", "1/2"):
        assert job.finish(tmp_path / "fresh", *options, "--shard", shard, before=before)[0] == 0
    assert rows(run_dir) == rows(tmp_path / "fresh")
