"""Ctrl+C: the command ends, says what is kept, and resumes when it is run again."""

import os
import signal
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import yaml
from faults import forks, in_a_group_of_its_own, ranks, run

from trak_lightning.cli import kept_mistakes
from trak_lightning.errors import TerminatedError

CONFIG = {
    "model": {"class_path": "trak_lightning.demos.DigitsCNN", "init_args": {"width": 4}},
    "data": {"class_path": "trak_lightning.demos.DigitsDataModule", "init_args": {"num_targets": 60}},
    "trainer": {"accelerator": "cpu", "max_epochs": 1},
    "projector": {"name": "sparse_jl", "dim": 64},
}
MANY = 500
"""Models: more than are trained before the key is pressed."""


def started(folder, arguments, before=None):
    log = folder / "log"
    process = forks().Process(target=run, args=([*map(str, arguments)], log, {}, before))
    process.start()
    return process, log


def finish(folder, *arguments):
    process, log = started(folder, arguments)
    process.join(300)
    assert process.exitcode == 0, log.read_text()


def interrupted(folder, arguments, reached):
    """Run a command, press Ctrl+C once ``reached(process)``; returns the exit status and what it printed."""
    process, log = started(folder, arguments, in_a_group_of_its_own)
    while not reached(process):
        assert process.is_alive(), log.read_text()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    process.join(120)
    return process.exitcode, log.read_text()


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A run directory with scores and no retrained models."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "ensemble": {"size": 1}, "run_dir": str(folder)}))
    for command in ("train", "featurize", "score"):
        finish(folder, command, folder)
    return folder


def test_ctrl_c_while_training(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**CONFIG, "ensemble": {"size": MANY}, "run_dir": str(tmp_path)}))
    checkpoint = tmp_path / "checkpoints" / "01.ckpt"
    status, said = interrupted(tmp_path, ("train", "--config", config), lambda process: checkpoint.exists())
    assert (status, "Traceback" in said) == (130, False), said
    assert "trak train: interrupted; every checkpoint" in said
    before = checkpoint.stat().st_mtime_ns
    finish(tmp_path, "train", tmp_path, "--ensemble.size", 2)
    assert checkpoint.stat().st_mtime_ns == before


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_while_retraining(workers, scored, tmp_path):
    models = scored / "evaluation" / "models"

    def reached(process):
        return len(ranks(process.pid)) == workers if workers > 1 else any(models.glob("*.npz"))

    arguments = ("evaluate", scored, "--evaluation.models", MANY, "--evaluation.workers", workers)
    status, said = interrupted(tmp_path, arguments, reached)
    assert (status, "Traceback" in said) == (130, False), said
    assert "trak evaluate: interrupted; every checkpoint, block and retrained model that was finished is kept." in said
    assert workers > 1 or 0 < len(list(models.glob("*.npz"))) < MANY
    assert not list(scored.rglob(".workers-*"))


@pytest.mark.parametrize(
    ("error", "ends"), [(TerminatedError("SIGTERM received"), True), (ValueError("of the user"), False)]
)
def test_a_run_that_is_told_to_end_while_it_predicts_targets_ends(error, ends, monkeypatch):
    def found(job, scores):
        raise error

    job = SimpleNamespace(run=None, num_processes=1)
    scores = SimpleNamespace(grouped=False, doubtful=lambda: [3], checksum="")
    monkeypatch.setattr(kept_mistakes, "_is_quick", lambda *_: True)
    monkeypatch.setattr(kept_mistakes, "SampleLines", lambda run: SimpleNamespace(mistakes=lambda checksum: None))
    monkeypatch.setattr(kept_mistakes, "_predicted", found)
    with pytest.raises(TerminatedError) if ends else nullcontext():
        kept_mistakes.keep_mistakes(job, scores)
