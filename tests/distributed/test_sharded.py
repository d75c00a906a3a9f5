"""ModelParallelStrategy (FSDP2): every rank holds a part of every parameter."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import rows
from groups import finish, start, torchrun
from sharded_cnn import WithoutRule

STRATEGY = (
    '{"class_path": "lightning.pytorch.strategies.ModelParallelStrategy", '
    '"init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1}}'
)


def on_two_ranks(job, run_dir, *options):
    """The exit codes, and what rank 0 printed."""
    codes = finish(start(job, run_dir, 2, torchrun, "--trainer.strategy", STRATEGY, *options))
    return codes, Path(f"{run_dir}-0.log").read_text()


def test_features_of_sharded_parameters_are_those_of_whole_ones(job, whole, tmp_path):
    """Of two checkpoints, and with an odd number of blocks: one rank has to go along with the other. Every batch of each rank is
    audited by both."""
    codes, log = on_two_ranks(job, tmp_path / "run", "--model", "sharded_cnn.ShardedCNN")
    assert codes == [0, 0], log
    found = rows(tmp_path / "run")
    assert found.keys() == whole.keys()
    for key, expected in whole.items():
        if key[1] == "features":
            expected = np.frombuffer(expected, np.float32)
            error = np.abs(np.frombuffer(found[key], np.float32) - expected).max() / np.abs(expected).max()
            assert error < 1e-5, key


def test_a_fault_of_a_later_batch_is_found_although_ranks_have_different_ones(job, tmp_path):
    codes, log = on_two_ranks(job, tmp_path / "run", "--model", "sharded_cnn.MixingLate")
    assert 0 not in codes
    assert re.search(r"sample \d{3} in a batch of one differs .* from that in a batch of 16, .* use batch_size=1", log)
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--model", "sharded_cnn.ShardedCNN", "--extractor", "functional"),
            "'functional' needs whole parameters, and 8",
        ),
        pytest.param(
            ("--model", "sharded_cnn.ShardedCNN", "--extractor", "iterative"),
            "'iterative' needs whole parameters, and 8",
            marks=pytest.mark.slow,
        ),
        pytest.param((), "configure_model shards it", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_done_with_sharded_parameters_is_refused(options, message, job, tmp_path):
    codes, log = on_two_ranks(job, tmp_path / "run", *options)
    assert 0 not in codes
    assert message in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_a_layer_without_a_rule_is_refused_by_name(job, tmp_path):
    torch.save(WithoutRule(8).state_dict(), tmp_path / "a.pt")
    options = ("--model", "sharded_cnn.WithoutRule", "--checkpoints", f"[{tmp_path / 'a.pt'}]")
    codes, log = on_two_ranks(job, tmp_path / "run", *options, "--extractor", "hooks")
    assert 0 not in codes
    assert "parameters net.9.factor are sharded over devices" in log


@pytest.mark.slow
def test_a_last_batch_of_one_sample(job, tmp_path):
    # A copy, because of the original it is known that it was trained on all samples.
    checkpoint = shutil.copy(job.checkpoints[0], tmp_path / "copy.ckpt")
    data = ("--data", "growing.SomeDigits", "--data.num_train", "97")
    some = ("--checkpoints", f"[{checkpoint}]", *data)
    codes, log = on_two_ranks(job, tmp_path / "run", "--model", "sharded_cnn.ShardedCNN", *some)
    assert codes == [0, 0], log
    assert job.finish(tmp_path / "whole", *some)[0] == 0
    found, whole = rows(tmp_path / "run"), rows(tmp_path / "whole")
    for key in whole:
        if key[1] == "features":
            one, other = (np.frombuffer(each[key], np.float32) for each in (found, whole))
            np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())
