"""Where the user names checkpoints, nothing is trained unless they ask for it; where training is impossible, it is said early."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from trak_lightning.cli import main

MODULE = """
import warnings, lightning as L, torch
from torch import nn
from torch.utils.data import DataLoader

ROWS = [(torch.randn(4, generator=torch.Generator().manual_seed(i)), i % 2) for i in range(60)]
for x, label in ROWS:
    x[0] = 1 - 2 * label

class Data(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(ROWS[:40], 10, shuffle=True)

    def backwards_dataloader(self):
        return DataLoader(ROWS[39::-1], 10)

    def test_dataloader(self):
        return DataLoader(ROWS[40:], 10)

class OnlyForward(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x)

class Net(OnlyForward):
    def training_step(self, batch, number):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class FineTuned(Net):
    def __init__(self):
        super().__init__()
        self.layer.weight.data = torch.tensor([[3.0, 0, 0, 0], [-3.0, 0, 0, 0]])

class Warns(Net):
    def on_fit_start(self):
        warnings.warn("modules are in eval mode")
"""


@pytest.fixture
def trak(tmp_path, monkeypatch, capsys):
    """Call ``trak`` in a folder with two checkpoints; returns its exit status and what it printed."""
    (tmp_path / "named_nets.py").write_text(MODULE)
    for seed in range(2):
        layer = torch.nn.Linear(4, 2)
        torch.save({f"layer.{name}": value for name, value in layer.state_dict().items()}, tmp_path / f"seed{seed}.pt")
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("named_nets", None)

    def call(command, *options, model="Net", run_dir="run", **settings):
        config = {
            "model": f"named_nets.{model}",
            "data": "named_nets.Data",
            "trainer": {"accelerator": "cpu"},
            "task": "image_classification",
            "projector": "identity",
            "checkpoints": ["seed*.pt"],
            **settings,
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        capsys.readouterr()
        status = main([command, run_dir, "--config", "config.yaml", *options])
        shown = capsys.readouterr()
        return status, shown.out + shown.err

    return call


def test_run_of_named_checkpoints_retrains_nothing_and_says_how_to(trak, tmp_path, capsys):
    for _ in range(2):
        status, shown = trak("run", model="OnlyForward")
        assert status == 0, shown
        last = shown.splitlines()[-1]
        assert last.startswith(
            "evaluate   skipped: the checkpoints are named, so nothing is trained; --evaluation.models 100"
        )
    assert main(["run", "run"]) == 0
    assert "evaluate   skipped" in capsys.readouterr().out
    assert not (tmp_path / "run" / "evaluation").exists()


TRAINED = {"trainer": {"accelerator": "cpu", "max_epochs": 1}}


@pytest.mark.parametrize("asked", ["option", "file", "command"])
def test_a_number_of_models_that_is_given_is_retrained_for_named_checkpoints_too(asked, trak, tmp_path, monkeypatch):
    if asked == "option":
        status, shown = trak("run", "--evaluation.models", "2", **TRAINED)
    elif asked == "file":
        status, shown = trak("run", evaluation={"models": 2}, **TRAINED)
    else:  # a hundred, as before
        monkeypatch.setattr("trak_lightning.evaluation.settings.MODELS", 2)
        assert trak("run", **TRAINED)[0] == 0
        status, shown = trak("evaluate", **TRAINED)
    assert (status, "over 2 retrained models" in shown, "skipped" in shown) == (0, True, False), shown
    assert len([*(tmp_path / "run" / "evaluation" / "models").glob("*.npz")]) == 2
    leave_out = " (--evaluation.models 0 leaves it out)" if asked == "command" else ""
    assert f"retrain    2 models to train{leave_out}\n" in shown


def test_other_evaluations_of_named_checkpoints_are_made_without_retraining(trak):
    status, shown = trak("run", "--evaluation.agreement", "true", model="OnlyForward")
    assert status == 0, shown
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("evaluate")][-1] == "skipped:"
    assert "agreement" in shown.lower()
    left_out = {"models": 0, "leave_one_out": 2, "repeats": 1}
    assert "retrain    3 models to train\n" in trak("evaluate", evaluation=left_out, **TRAINED)[1]


@pytest.mark.parametrize("command", ["run", "train", "evaluate"])
@pytest.mark.parametrize(
    ("model", "lacks"), [("OnlyForward", "no training_step"), ("Net", "none of trainer.max_epochs")]
)
def test_what_cannot_be_trained_is_refused_before_anything_is_computed(command, model, lacks, trak, tmp_path):
    options = {"train": ("--checkpoints", "null"), "run": ("--evaluation.models", "2"), "evaluate": ()}[command]
    if command == "evaluate":
        assert trak("run", model=model)[0] == 0
    status, shown = trak(command, *options, model=model)
    assert (status > 0, shown.count("\n")) == (True, 1), shown
    assert lacks in shown
    assert (tmp_path / "run" / "features").exists() == (command == "evaluate")
    assert not (tmp_path / "run" / "evaluation").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_check_says_how_many_models_would_be_trained_or_why_that_is_impossible(trak):
    assert "\ntraining " not in trak("check", model="OnlyForward")[1]
    by_default = "10 models to attribute, and 100 models for the evaluation (--evaluation.models 0 leaves it out)"
    for options, models in (
        (("--checkpoints", "null"), by_default),
        (("--evaluation.models", "2"), "2 models for the evaluation"),
    ):
        status, shown = trak("check", *options, model="OnlyForward")
        assert (status, "\ntraining   impossible: OnlyForward has no training_step" in shown) == (0, True), shown
        assert f"\ntraining   {models}\n" in trak("check", *options, **TRAINED)[1]


ENSEMBLE = {**TRAINED, "checkpoints": None, "ensemble": {"size": 3}, "evaluation": {"models": 2}}


def test_a_fresh_model_that_fits_its_training_samples_is_warned_of_once(trak, caplog):
    def warned(command, model, settings):
        caplog.clear()
        assert trak(command, model=model, **settings)[0] == 0
        return caplog.text.count("the model fits its training samples before it is trained")

    assert [warned(command, "FineTuned", ENSEMBLE) for command in ("check", "run", "run", "check")] == [1, 1, 0, 1]
    assert warned("run", "FineTuned", {**TRAINED, "run_dir": "named"}) == 0  # nothing is trained
    assert warned("check", "Net", {**ENSEMBLE, "run_dir": "fresh"}) == 0


@pytest.mark.filterwarnings("always:modules are in eval mode")
def test_a_warning_that_every_training_repeats_is_shown_once(trak):
    status, shown = trak("run", model="Warns", **ENSEMBLE)
    assert (status, shown.count("UserWarning: modules are in eval mode")) == (0, 1), shown


def test_training_samples_are_those_of_the_split_that_was_scored(trak, capsys):
    """Also after another one was featurized, which is that of the run then."""

    def first(*command):
        capsys.readouterr()
        assert main([*command, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        return [(each["index"], each["text"]) for each in found["helpful"]]

    assert trak("run")[0] == 0
    before = first("top", "run", "--target", "0", "--name", "test")
    for command in (["featurize", "run"], ["score", "run", "--name", "again"]):
        assert main([*command, "--train_split", "backwards"]) == 0
    assert first("top", "run", "--target", "0", "--name", "test") == before
    backwards = first("top", "run", "--target", "0", "--name", "again")
    assert [(39 - index, text) for index, text in backwards] == before
    for split in ("train", "backwards"):
        assert main(["select", "run", "--budget", "1.0", "--train_split", split, "--groups", "label", "--numbers"]) == 0
        chosen = json.loads(Path("run/selection/selection.json").read_text())
        assert chosen["group"] == [str((index if split == "train" else 39 - index) % 2) for index in chosen["indices"]]
