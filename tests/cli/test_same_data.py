"""Samples are shown, predicted and trained on only as those whose rows were stored."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml

from trak_lightning.cli import main

MODULE = """
import lightning as L, numpy as np, torch
from torch import nn
from torch.utils.data import DataLoader, random_split

ROWS = [(torch.randn(4, generator=torch.Generator().manual_seed(i)), i % 2, i) for i in range(60)]

class Data(L.LightningDataModule):
    def __init__(self, entropy: bool = False):
        super().__init__()
        self.entropy = entropy

    def setup(self, stage):
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence().entropy % 2**60)) if self.entropy else None
        self.train, self.test = random_split(ROWS, [40, 20], generator)

    def train_dataloader(self):
        return DataLoader(self.train, 10, shuffle=True)

    def test_dataloader(self):
        return DataLoader(self.test, 10)

class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x)

    def on_train_batch_start(self, batch, number):
        with open("seen.txt", "a") as file:
            print(*batch[2].tolist(), file=file)

    def training_step(self, batch, number):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A function that returns the folder of a finished run of a DataModule with these options, which is made once."""
    folders = {}

    def folder_of(**options):
        key = str(options)
        if key not in folders:
            folder = folders[key] = tmp_path_factory.mktemp("finished")
            (folder / "splits_at_random.py").write_text(MODULE)
            config = {
                "model": "splits_at_random.Net",
                "data": {"class_path": "splits_at_random.Data", "init_args": options},
                "trainer": {"accelerator": "cpu", "max_epochs": 1},
                "ensemble": {"size": 2},
                "task": {"name": "image_classification", "inputs": 0, "labels": 1},
                "projector": "identity",
                "evaluation": {"models": 0},
            }
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            with pytest.MonkeyPatch.context() as here:
                enter(folder, here)
                here.setattr(
                    "trak_lightning.cli.shown_samples.SECONDS", 60.0
                )  # all lines are kept on a busy machine too
                assert main(["run", "run", "--config", "config.yaml"]) == 0
        return folders[key]

    return folder_of


def enter(folder, monkeypatch):
    """Let commands find their files and the module in a folder."""
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the module is edited
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    sys.modules.pop("splits_at_random", None)


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """Put a run of a DataModule that splits its rows at random into the folder of the test; returns the run directory."""

    def start(**options):
        folder = finished(**options)
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        lines = tmp_path / "run" / "sample_lines.json"  # knows the files of the code by their places
        lines.write_text(lines.read_text().replace(str(folder), str(tmp_path)))
        enter(tmp_path, monkeypatch)
        return tmp_path / "run"

    return start


def test_a_split_without_a_seed_is_the_same_in_every_command_and_every_training(run, tmp_path, capsys):
    run_dir = run()
    positions = [np.load(path) for path in sorted((run_dir / "checkpoints").glob("*.subset.npy"))]
    trained = [set(map(int, line.split())) for line in (tmp_path / "seen.txt").read_text().splitlines()]
    per_model = [set().union(*trained[:2]), set().union(*trained[2:])]
    capsys.readouterr()
    shown = []
    for _ in range(2):
        torch.rand(7)
        assert main(["top", "run", "--target", "0", "-k", "40"]) == 0
        shown.append(capsys.readouterr())
    assert shown[0].out == shown[1].out
    assert "x0[0]" in shown[0].out  # samples are shown
    assert shown[0].err == ""
    from trak_lightning.cli.job import Job

    ids = [row[2] for row in Job("top", ["run", "--config", "run/config.yaml"]).train_data.dataset]
    assert [{ids[i] for i in subset} for subset in positions] == per_model


def test_data_that_differs_from_the_stored_rows_is_neither_shown_nor_predicted(run, capsys):
    run_dir = run(entropy=True)
    capsys.readouterr()
    assert main(["top", "run", "--target", "0", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)["helpful"]
    (run_dir / "sample_lines.json").unlink()
    assert main(["top", "run", "--target", "0"]) == 0
    shown = capsys.readouterr()
    assert "samples are not shown: StaleRowsError" in shown.err
    assert "is the data split or ordered at random?" in shown.err
    assert f" {numbers[0]['index']} " in shown.out
    for command in (
        ["suspects"],
        ["report"],
        ["whatif", "--remove_label", "1"],
        ["evaluate", "--evaluation.models", "2"],
    ):
        assert main([command[0], "run", *command[1:]]) == 1, command
        assert "Give random_split a generator with a seed" in capsys.readouterr().err


def test_samples_that_were_shown_once_are_shown_as_they_were_without_the_code_of_the_user(run, capsys, monkeypatch):
    run_dir = run(entropy=True)
    capsys.readouterr()
    monkeypatch.setattr("trak_lightning.cli.job.Job.__init__", None)
    for asked in (["--target", "0"], ["--by_train", "0"]):
        assert main(["top", "run", *asked, "-k", "10"]) == 0
        shown = capsys.readouterr()
        assert (shown.err, "x0[0]" in shown.out) == ("", True)
    (run_dir / "sample_lines.json").write_text("{")  # as nothing
    assert main(["top", "run", "--target", "0"]) == 0
    assert "samples are not shown: TypeError" in capsys.readouterr().err


def test_class_names_that_were_edited_are_shown_at_once(run, tmp_path, capsys):
    run()
    named = MODULE.replace("    def setup", '    class_names = ["even", "odd"]\n\n    def setup', 1)
    (tmp_path / "splits_at_random.py").write_text(named)
    sys.modules.pop("splits_at_random", None)
    capsys.readouterr()
    assert main(["top", "run", "--target", "0"]) == 0
    shown = capsys.readouterr()
    assert (shown.err, "even" in shown.out, "odd" in shown.out) == ("", True, True)


def test_checkpoints_of_a_training_elsewhere_with_a_split_without_a_seed_are_a_warning(run, tmp_path, caplog):
    checkpoint = next((run() / "checkpoints").glob("*.ckpt"))
    assert main(["featurize", "run"]) == 0
    assert "perhaps on another split" not in caplog.text
    config = yaml.safe_load((tmp_path / "config.yaml").read_text()) | {"checkpoints": [str(checkpoint)]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    assert main(["featurize", "own", "--config", "own.yaml"]) == 0
    assert "setup of Data draws random numbers, and the checkpoints were trained elsewhere" in caplog.text


@pytest.mark.parametrize("option", [[], ["--seed_everything", "true"]])
def test_the_seed_that_is_used_where_none_is_named_is_recorded(option, run, tmp_path):
    run()
    config = (
        yaml.safe_load((tmp_path / "config.yaml").read_text())
        | {"seed": 3}
        | ({} if option else {"seed_everything": True})
    )
    (tmp_path / "true.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "seeded", "--config", "true.yaml", *option]) == 0
    assert yaml.safe_load((tmp_path / "seeded" / "config.yaml").read_text())["seed_everything"] == 3


@pytest.mark.parametrize(
    ("before", "after", "command", "message"),
    [
        ("0.1)", "0.5)", ["evaluate", "--evaluation.models", "3"], "delete .*models to train all its models again"),
        pytest.param(
            "self.layer(x)",
            "self.layer(x).tanh()",
            ["evaluate", "--evaluation.models", "3"],
            "the stored rows of 'train'",
            marks=pytest.mark.slow,
        ),
        ("0.1)", "0.5)", ["train", "--ensemble.size", "3"], "the weights of .*00.ckpt .*use another run directory"),
        pytest.param(
            "self.layer(x)",
            "self.layer(x).tanh()",
            ["suspects"],
            "the stored rows of 'train'",
            marks=pytest.mark.slow,
        ),
        ("self.layer(x)", "self.layer(x).tanh()", ["report"], "the stored rows of 'train'"),
    ],
)
def test_code_that_was_edited_is_not_used_with_models_and_rows_of_the_old_one(
    before, after, command, message, run, tmp_path, capsys
):
    run()
    if command[0] == "evaluate":
        assert main(["evaluate", "run", "--evaluation.models", "2"]) == 0
    (tmp_path / "splits_at_random.py").write_text(MODULE.replace(before, after))
    sys.modules.pop("splits_at_random", None)
    capsys.readouterr()
    assert main([command[0], "run", *command[1:]]) == 1
    assert re.search(message, capsys.readouterr().err)
    (tmp_path / "splits_at_random.py").write_text(MODULE)
    sys.modules.pop("splits_at_random", None)
    assert main([command[0], "run", *command[1:]]) == 0


@pytest.mark.parametrize("command", [["train", "other"], ["evaluate", "run", "--evaluation.models", "2"]])
def test_models_are_not_trained_by_positions_in_a_split_of_another_length(command, run, capsys):
    run()
    options = ["--config", "config.yaml", "--train_split", "test"]
    if command[0] == "evaluate":
        shutil.copy("run/checkpoints/00.ckpt", "own.ckpt")
        options += ["--checkpoints", "own.ckpt", "--projector.name", "identity", "--target_split", "train"]
        assert main(["featurize", "own", *options]) == 0
        command, options = ["evaluate", "own", *command[2:]], []
    assert main([*command, *options]) == 1
    assert "train_split 'test' has 20 samples, and models are trained on the 40 of train_dataloader of Data" in (
        capsys.readouterr().err
    )


def test_augmented_samples_are_refused_before_any_model_is_trained(run, tmp_path, capsys):
    run()
    augmented = "DataLoader([*self.train], 10, shuffle=True, collate_fn=lambda rows: [torch.rand(len(rows), 4), torch.tensor([1])])"
    (tmp_path / "splits_at_random.py").write_text(MODULE.replace("DataLoader(self.train, 10, shuffle=True)", augmented))
    sys.modules.pop("splits_at_random", None)
    assert main(["run", "other", "--config", "config.yaml"]) == 1
    assert "With a DataModule, add a method plain_dataloader" in capsys.readouterr().err
    assert not list((tmp_path / "other").rglob("*.ckpt"))


@pytest.mark.parametrize("command", [["train", "other"], ["evaluate", "run", "--evaluation.models", "2"]])
def test_models_are_not_trained_by_positions_in_another_order(command, run, tmp_path, capsys):
    run()
    edited = MODULE.replace(
        "    def train_dataloader",
        "    def plain_dataloader(self):\n        return DataLoader(self.train, 10)\n\n    def train_dataloader",
    )
    if command[0] == "evaluate":
        (tmp_path / "splits_at_random.py").write_text(edited)
        sys.modules.pop("splits_at_random", None)
        shutil.copy("run/checkpoints/00.ckpt", "own.ckpt")
        own = ["--checkpoints", "own.ckpt", "--train_split", "plain", "--config", "config.yaml"]
        assert main(["run", "own", *own]) == 0
        command = ["evaluate", "own", *command[2:]]
    else:
        command = [*command, "--train_split", "plain", "--config", "config.yaml"]
    (tmp_path / "splits_at_random.py").write_text(
        edited.replace("DataLoader(self.train, 10, ", "DataLoader(list(self.train)[::-1], 10, ")
    )
    sys.modules.pop("splits_at_random", None)
    capsys.readouterr()
    assert main(command) == 1
    assert "sample 0 of train_dataloader of Data, which models are trained on, is sample 39 of plain_dataloader" in (
        capsys.readouterr().err
    )


def test_subsets_of_models_are_not_taken_for_positions_in_another_order(run, tmp_path, capsys):
    run()
    assert main(["train", "other", "--config", "config.yaml"]) == 0
    (tmp_path / "splits_at_random.py").write_text(MODULE.replace("range(60)", "range(59, -1, -1)"))
    sys.modules.pop("splits_at_random", None)
    for command in ("featurize", "run", "train"):
        capsys.readouterr()
        assert main([command, "other"] + ["--config", "config.yaml"] * (command != "featurize")) == 1
        message = "sample .* is what sample .* was when the models in .*checkpoints were"
        assert re.search(message, capsys.readouterr().err), command
    (tmp_path / "splits_at_random.py").write_text(
        MODULE.replace("ROWS = [", "ROWS = [(x, 1 - y, i) if i % 9 == 0 else (x, y, i) for x, y, i in [").replace(
            "range(60)]", "range(60)]]"
        )
    )
    sys.modules.pop("splits_at_random", None)
    assert main(["featurize", "other"]) == 0  # corrected labels, in the same order
    assert main(["featurize", "run"]) == 1
    assert "stored rows" in capsys.readouterr().err


def test_after_labels_were_corrected_models_of_the_earlier_ones_are_named_and_judge_no_scores(
    run, tmp_path, capsys, caplog
):
    run()
    config = yaml.safe_load((tmp_path / "config.yaml").read_text()) | {"evaluation": {"models": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["run", "run", "--config", "config.yaml"]) == 0
    assert "trained on" not in caplog.text
    (tmp_path / "splits_at_random.py").write_text(MODULE.replace("i % 2, i)", "i % 2 if i > 20 else 1 - i % 2, i)"))
    sys.modules.pop("splits_at_random", None)
    for folder in ("features", "scores", "projections"):
        shutil.rmtree(tmp_path / "run" / folder, ignore_errors=True)
    assert main(["run", "run", "--config", "config.yaml"]) == 1
    assert re.search(
        "samples of the training data are not what the models in .*checkpoints were trained on", caplog.text
    )
    assert "are of other training samples than the models" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run" / "evaluation" / "models")
    assert main(["run", "run", "--config", "config.yaml"]) == 0
    assert "(2 trained" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("i % 2, i)", "i % 2 if i != 17 else 1 - i % 2, i)", "of other (training samples|targets) than the scores"),
        ("self.layer(x)", "self.layer(x).tanh()", "of another function .*than the scores"),
    ],
)
def test_scores_are_not_shown_next_to_rows_that_they_were_not_made_from(before, after, message, run, tmp_path, capsys):
    run()
    (tmp_path / "splits_at_random.py").write_text(MODULE.replace(before, after))
    sys.modules.pop("splits_at_random", None)
    shutil.rmtree(tmp_path / "run" / "features")
    assert main(["top", "run", "--target", "1"]) == 0  # there is nothing else that it could be shown next to
    assert main(["featurize", "run"]) == 0
    for command in (["top", "run"], ["top", "run", "--target", "1"], ["report", "run"]):
        capsys.readouterr()
        assert main(command) == 1, command
        assert re.search(f"stored rows are {message}.*Compute the scores again: trak score", capsys.readouterr().err)
    assert main(["whatif", "run", "--remove", "0"]) == 0
    assert main(["score", "run"]) == 0
    assert main(["top", "run", "--target", "1"]) == 0


def test_a_checkpoint_file_that_was_overwritten_is_named_as_such(run, tmp_path, capsys):
    run()
    folder = tmp_path / "run" / "checkpoints"
    shutil.copy(folder / "01.ckpt", folder / "00.ckpt")
    assert main(["suspects", "run"]) == 1
    assert "checkpoints/00.ckpt holds other weights than those that were featurized" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--trainer.max_epochs", "2"], ["--seed", "1"], ["--ensemble.fraction", "0.4"]])
def test_settings_of_checkpoints_that_changed_are_refused_without_advice_that_does_not_help(option, run, capsys):
    run()
    assert main(["run", "run", "--config", "config.yaml", *option]) == 1
    assert re.search(
        "checkpoints was made with .* Use another run directory, or go back to the old setting[.]\n",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize(("how", "recorded"), [("moved", "relative"), ("copied", "absolute")])
def test_a_run_directory_that_is_elsewhere_now_reads_its_own_checkpoints(how, recorded, run, tmp_path, capsys):
    run_dir = run()
    record = json.loads((run_dir / "run.json").read_text())
    assert [each["source"] for each in record["checkpoints"]] == ["checkpoints/00.ckpt", "checkpoints/01.ckpt"]
    if recorded == "absolute":  # as earlier versions did
        for each in record["checkpoints"]:
            each["source"] = str(run_dir / each["source"])
        (run_dir / "run.json").write_text(json.dumps(record))
    shutil.copytree(run_dir, tmp_path / "elsewhere")
    if how == "moved":
        shutil.rmtree(run_dir)
    else:
        for path in (run_dir / "checkpoints").glob("*.ckpt"):
            path.write_bytes(b"of another run")
    assert main(["suspects", "elsewhere"]) == 0, capsys.readouterr().err


def test_a_run_whose_features_are_in_memory_keeps_lines_too(run, tmp_path):
    run()
    assert main(["run", "other", "--config", "config.yaml", "--store", "memory"]) == 0
    assert json.loads((tmp_path / "other" / "sample_lines.json").read_text())["lines"]
