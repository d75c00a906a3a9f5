"""Parts of a job that need not know of each other: which does what, and which one notices that all are done."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from faults import ENVIRONMENT, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from trak_lightning import TRAK
from trak_lightning.errors import IncompleteRunError, SettingsError
from trak_lightning.stores.base import FeatureSpec
from trak_lightning.stores.job_shards import Shard
from trak_lightning.stores.memory import MemorySet

SCRIPT = Path(__file__).parents[2] / "configs" / "slurm" / "featurize.sh"


@settings(deadline=None)
@given(blocks=st.lists(st.integers(1, 9), min_size=1, max_size=5), count=st.integers(1, 40))
def test_every_block_belongs_to_one_shard_and_shards_are_of_one_size(blocks, count):
    sets = [MemorySet(FeatureSpec("train", str(i), 4 * number, 2, 4, 4)) for i, number in enumerate(blocks)]
    parts = [Shard(index, count).blocks(sets) for index in range(1, count + 1)]
    given = [(number, block) for part in parts for number, own in enumerate(part) for block in own]
    assert given == [(number, block) for number, length in enumerate(blocks) for block in range(length)]
    sizes = [sum(map(len, part)) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0/16", "counted from 1, 1/16 to 16/16"),
        ("17/16", "no shard '17/16'"),
        ("x", "like 3/16, the third of sixteen, got 'x'"),
        ("1/0", "no shard '1/0'"),
        ("-1/4", "like 3/16"),
        ("1.5/4", "like 3/16"),
    ],
)
def test_a_shard_that_cannot_be_is_refused(text, message):
    with pytest.raises(SettingsError, match=message):
        Shard.parse(text)


def test_scoring_says_which_shards_are_missing_until_all_are_there(model, train_set, test_set, checkpoints, tmp_path):
    def attribute(run_dir):
        return TRAK(model, task="image_classification", run_dir=run_dir, projector="identity")

    whole = attribute(tmp_path / "whole")
    whole.featurize(train_set, checkpoints, batch_size=4, block_size=4)
    shards = attribute(tmp_path / "shards")
    # In no order, and one of them twice.
    for shard in ("4/5", "1/5", "4/5"):
        shards.featurize(train_set, checkpoints, batch_size=4, block_size=4, shard=shard)
    with pytest.raises(
        IncompleteRunError, match=r"features of 'train' are missing: shards 2–3, 5 of 5\. Run trak feat"
    ):
        shards.score(test_set, "test")
    for shard in ("5/5", "3/5", "2/5"):
        attribute(tmp_path / "shards").featurize(train_set, checkpoints, batch_size=4, block_size=4, shard=shard)
    np.testing.assert_array_equal(shards.score(test_set, "test").values, whole.score(test_set, "test").values)
    assert rows(tmp_path / "shards") == rows(tmp_path / "whole")


@pytest.mark.parametrize(("first", "last"), [(0, 15), (1, 16)])
def test_the_slurm_script_numbers_shards_from_1_wherever_the_array_begins(first, last, tmp_path):
    script = edited(tmp_path, "echo")
    done = [task(script, tmp_path, first, last, number).stdout.split() for number in range(first, last + 1)]
    assert done == [["--shard", f"{shard}/16"] for shard in range(1, 17)]
    gap = {"SLURM_ARRAY_TASK_COUNT": "2"}
    refused = task(script, tmp_path, first, last, last, **gap)
    assert (refused.returncode, "submit all of it again" in refused.stderr) == (2, True)


@pytest.mark.slow
def test_sixteen_tasks_of_the_slurm_script_give_the_bits_of_one_process(job, whole, tmp_path):
    command = " ".join([sys.executable, "-m", "trak_lightning", *map(repr, job.arguments(tmp_path / "run"))])
    script = edited(tmp_path, command)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda number: task(script, tmp_path, 0, 15, number), range(16)))
    assert [each.returncode for each in done] == [0] * 16, done[0].stderr
    assert any("all are there" in each.stdout for each in done)
    assert any("unfinished: shard" in each.stdout for each in done)
    assert rows(tmp_path / "run") == whole


def edited(folder, command):
    """The script as a user has edited it, and an ``srun`` that starts one task."""
    lines = SCRIPT.read_text().splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith("featurize=(")]
    lines[place] = f"featurize=({command})"
    path, srun = folder / "featurize.sh", folder / "srun"
    path.write_text("\n".join(lines))
    srun.write_text('#!/bin/sh\nSLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 exec "$@"\n')
    srun.chmod(srun.stat().st_mode | stat.S_IEXEC)
    return path


def task(script, folder, first, last, number, **changed):
    """What sbatch runs for one task of an array."""
    variables = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": 1000 + number,
        "SLURM_JOB_NAME": "trak-featurize",
        "SLURM_NTASKS": 1,
        "SLURM_ARRAY_JOB_ID": 1000,
        "SLURM_ARRAY_TASK_ID": number,
        "SLURM_ARRAY_TASK_MIN": first,
        "SLURM_ARRAY_TASK_MAX": last,
        "SLURM_ARRAY_TASK_COUNT": last - first + 1,
        **changed,
    }
    environment = {**ENVIRONMENT, **{name: str(value) for name, value in variables.items()}}
    return subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False, timeout=900)
