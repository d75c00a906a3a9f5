"""Rows of a table: chosen in the units and words of the DataModule's `render`, and ranked by their error."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from trak_lightning import TRAK
from trak_lightning.cli import main
from trak_lightning.cli.commands.tokens import _print_all
from trak_lightning.scoring.scores import Scores

MODULE = """
import lightning as L
import torch
from torch.utils.data import DataLoader
from trak_lightning.tasks.regression import Regression

random = torch.Generator().manual_seed(0)
AGE = torch.randint(18, 90, (60,), generator=random).float()
SEX = torch.randint(0, 2, (60,), generator=random)


class Rows(L.LightningDataModule):
    def loader(self, rows):
        samples = [{"x": torch.stack([(AGE[i] - 50) / 20, SEX[i].float()]), "y": (AGE[i] / 10).float()} for i in rows]
        return DataLoader(samples, batch_size=10)

    def train_dataloader(self):
        return self.loader(range(40))

    def test_dataloader(self):
        return self.loader(range(40, 60))

    def render(self, sample):
        age, sex = sample["x"].tolist()
        return {"age": round(20 * age + 50), "sex": "female" if sex else "male"}, float(sample["y"])


class Scaled(Regression):
    def targets(self, batch):
        return (super().targets(batch) - 500) / 3


def missed(model, batch):
    return (model(batch["x"])[:, 0] - batch["y"]).square()


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 1)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return (self(batch["x"])[:, 0] - batch["y"]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)
"""


MASKS = """
PIXELS = torch.randint(0, 2, (60, 2, 2, 2), generator=random)


class Masks(Rows):
    def loader(self, rows):
        samples = super().loader(rows).dataset
        masks = [{"mask": PIXELS[i, 0], "masks": PIXELS[i].float()} for i in rows]
        return DataLoader([row | each for row, each in zip(samples, masks)], batch_size=10)


class Pixels(Net):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 8)

    def forward(self, x):
        return self.net(x).view(-1, 2, 2, 2)

    def training_step(self, batch, batch_idx):
        return self(batch["x"]).square().mean()
"""


TAGS = """
random = torch.Generator().manual_seed(0)
X, TAGGED = (torch.randn(60, 4, generator=random) for _ in range(2))
TAGGED = (TAGGED > 0).float().masked_fill(torch.rand(60, 4, generator=random) < 0.1, -100)


class Tagged(Rows):
    class_names = ["shoe", "top", "x0", "wide"]

    def loader(self, rows):
        return DataLoader([(X[i], TAGGED[i]) for i in rows], batch_size=10)

    render = None


class Tagger(Net):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 4)

    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()
"""


@pytest.fixture
def tagged(make_run):
    return make_run(model="rows_of_a_table.Tagger", data="rows_of_a_table.Tagged", task="multilabel")


@pytest.fixture
def run(make_run):
    return make_run()


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "rows_of_a_table.py").write_text(MODULE + MASKS + TAGS)
    settings = {
        "model": "rows_of_a_table.Net",
        "data": "rows_of_a_table.Rows",
        "task": {"name": "regression", "labels": "y"},
        "trainer": {"accelerator": "cpu", "max_epochs": 1},
        "ensemble": {"size": 4},
        "projector": "identity",
    }

    def make(run_dir="run", **others):
        (tmp_path / "rows.yaml").write_text(json.dumps(settings | others))
        for command in ("train", "featurize", "score"):
            options = ["--config", str(tmp_path / "rows.yaml")] if command == "train" else []
            assert main([command, str(tmp_path / run_dir), *options]) == 0
        return tmp_path / run_dir

    return make


def test_rows_are_chosen_in_the_units_and_words_that_are_shown(run, capsys):
    from rows_of_a_table import AGE, SEX

    capsys.readouterr()
    assert main(["whatif", str(run), "--remove_where", "age>60 and sex=female", "--json"]) == 0
    expected = np.flatnonzero((AGE[:40] > 60) & (SEX[:40] == 1)).tolist()
    assert json.loads(capsys.readouterr().out)["samples"] == expected
    assert main(["select", str(run), "--budget", "10", "--groups", "sex", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["group"]) == {"male", "female"}
    assert main(["whatif", str(run), "--remove_where", "x[0]>60"]) == 1
    assert 'in the units of the samples (page recipes of the documentation, under "Tables")' in capsys.readouterr().err
    assert main(["whatif", str(run), "--remove_where", "town=Bern"]) == 1
    said = capsys.readouterr().err
    assert "no column 'town'; their columns are x[0] … x[1], y, age, sex. " in said
    assert "np.save('rows.npy', (table.age > 60).to_numpy()), and --remove rows.npy" in said


def test_the_change_of_one_target_is_printed_alone(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    assert main(["whatif", str(run), "--remove", "3,7", "-k", "20"]) == 0
    both = capsys.readouterr().out.splitlines()
    row = next(line for line in both if line.split()[0] == "5")
    assert main(["whatif", str(run), "--remove", "3,7", "--target", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == both[4].split() == ["target", "prediction", "change", "label", "sample"]
    assert lines[4].split() == row.split()
    assert [line for line in lines[5:] if not line.startswith("trust")] == []
    assert main(["whatif", str(run), "--remove", "3,7", "--target", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == {"index": 5} | {
        name: found[of][5] for name, of in (("output", "outputs"), ("change", "change"), ("spread", "spread"))
    }
    for outside in ("20", "-1"):
        assert main(["whatif", str(run), "--remove", "3,7", f"--target={outside}"]) == 1
        assert (
            f"target {outside} is out of range: {run} has targets 0 … 19 of the name 'test'" in capsys.readouterr().err
        )
    assert main(["whatif", str(run), "--remove", "3", "7"]) == 2
    assert "Did you mean --target" not in capsys.readouterr().err


def test_a_word_among_numbers_is_answered_in_words_of_the_command_line(run, capsys):
    capsys.readouterr()
    assert main(["whatif", str(run), "--remove_where", "x[1]=female"]) == 1
    said = capsys.readouterr().err
    assert (
        "'0.0', '1.0'; a method render(self, sample) of your DataModule that returns a dict, such as {'x[1]': …}, may"
        in said
    )
    assert "where(" not in said


def test_where_targets_are_neither_right_nor_wrong_the_lowest_are_listed_without_a_prediction(
    make_run, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    for task, model, heading in (
        ({"name": "loss", "function": "rows_of_a_table.missed"}, "Net", "negative loss"),
        ({"name": "segmentation", "inputs": "x", "labels": "mask"}, "Pixels", "geometric mean p(pixel)"),
        ({"name": "multilabel", "inputs": "x", "labels": "masks"}, "Pixels", "geometric mean p(answer)"),
    ):
        data = "Rows" if model == "Net" else "Masks"
        run = make_run(
            task=task, model=f"rows_of_a_table.{model}", data=f"rows_of_a_table.{data}", run_dir=f"{task['name']}"
        )
        scores = Scores(run / "scores" / "test.h5")
        values = next(scores.outputs()[key] for key in ("probability", "output") if key in scores.outputs())
        capsys.readouterr()
        with monkeypatch.context() as changed:
            if task["name"] != "multilabel":  # which predicts labels, but of masks
                changed.setattr("trak_lightning.cli.kept_mistakes._predicted", None)
            assert main(["top", str(run), "-k", "3"]) == 0
            first, headings, *rows, last = capsys.readouterr().out.splitlines()
            assert main(["top", str(run), "-k", "3", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert first == (
            f"20 targets, lowest {heading} first (mean over 4 checkpoints): the task predicts neither classes nor numbers, so that no target "
            "is right or wrong"
        )
        assert " ".join(headings.split()).startswith(f"target {heading}")
        assert found["indices"] == values.argsort(kind="stable").tolist()
        assert [int(row.split()[0]) for row in rows if row[:7].strip().isdigit()] == found["indices"][:3]
        assert all("age: " in each["text"] for each in found["lowest"]), found["lowest"]
        assert (
            last
            == f"The first 3 of 20; -k 20 prints them. To see what moved one: trak top {run} --target {values.argmin()}"
        )


def test_a_run_of_python_names_what_works_on_it(tmp_path, capsys):
    trak = TRAK(torch.nn.Linear(2, 3).eval(), "image_classification", tmp_path, projector="identity")
    data = TensorDataset(torch.randn(9, 2), torch.arange(9) % 3)
    trak.featurize(data)
    trak.score(data, name="test")
    for command, works in (
        (["whatif", "--remove_label", "3"], "--remove rows.npy, "),
        (
            ["whatif", "--remove_where", "y=3"],
            "call what_if(name).remove(trak.where(condition)) of its TRAK object trak, with",
        ),
        (["select", "--budget", "2", "--groups", "label"], "--groups groups.npy, "),
    ):
        assert main([command[0], str(tmp_path), *command[1:]]) == 1
        assert works in capsys.readouterr().err


def test_several_yes_or_no_labels_are_columns_of_their_names(tagged, capsys):
    from rows_of_a_table import TAGGED, X

    capsys.readouterr()
    assert main(["whatif", str(tagged), "--remove_where", "shoe=1 and wide=0", "--json"]) == 0
    expected = np.flatnonzero((TAGGED[:40, 0] == 1) & (TAGGED[:40, 3] == 0)).tolist()
    assert json.loads(capsys.readouterr().out)["samples"] == expected
    assert main(["whatif", str(tagged), "--remove_where", "top=None", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == np.flatnonzero(TAGGED[:40, 1] == -100).tolist()
    assert main(["whatif", str(tagged), "--remove_where", "x0[1]>0.5", "--json"]) == 0, "a column of the sample"
    assert json.loads(capsys.readouterr().out)["samples"] == np.flatnonzero(X[:40, 1] > 0.5).tolist()
    assert main(["whatif", str(tagged), "--remove_where", "sho=1"]) == 1
    assert "their columns are x0[0] … x0[3], x1[0] … x1[3], shoe, top, x0, wide. " in capsys.readouterr().err
    assert main(["whatif", str(tagged), "--remove_label", "shoe"]) == 1
    assert "samples have several labels: --remove_where 'shoe=1'" in capsys.readouterr().err
    assert main(["select", str(tagged), "--budget", "10", "--groups", "label"]) == 1
    assert "samples have several labels: --groups shoe" in capsys.readouterr().err
    assert main(["select", str(tagged), "--budget", "10", "--groups", "shoe", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["group"]) <= {"0", "1", "None"}


def test_a_regression_is_ranked_by_its_error_with_prediction_and_sign_and_has_no_cut(run, capsys):
    capsys.readouterr()
    assert main(["suspects", str(run), "--fdr", "0.2", "-k", "3"]) == 0
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines() if line.strip().startswith("index")] == [
        ["index", "label", "models", "say", "error", "why", "sample"]
    ]
    assert "age: " in out
    assert "--fdr has no effect: the task has no classes" in err
    with (run / "suspects" / "suspects.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        label, says = float(row["label"]), float(row["says"])
        assert float(row["error"]) == pytest.approx(abs(label - says), rel=0.1)
        assert row["why"].startswith(f"label {'above' if label > says else 'below'} the prediction")
        assert "age: " in row["text"]
    assert len({row["error"] for row in rows}) > 20
    assert main(["suspects", str(run), "-k", "3"]) == 0
    out, err = capsys.readouterr()
    assert "--fdr" not in err
    assert not any(line.endswith(" ") for line in out.splitlines())
    assert main(["top", str(run), "-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("20 targets, largest errors first")
    assert lines[1].split() == ["target", "label", "models", "say", "error"]
    errors = [float(line.split()[-1]) for line in lines[2:5]]
    assert errors == sorted(errors, reverse=True)


def test_labels_are_in_the_unit_of_the_predictions_though_a_task_of_ones_own_scales_them(make_run, capsys):
    run = make_run(task={"name": "rows_of_a_table.Scaled", "labels": "y"})
    from rows_of_a_table import AGE

    scaled = [f"{(age / 10 - 500) / 3:.4g}" for age in AGE.tolist()]
    capsys.readouterr()
    assert main(["top", str(run), "--target", "0", "-k", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"]["label"] == scaled[40]
    assert all(each["label"] == scaled[each["index"]] for each in found["helpful"] + found["harmful"])
    assert main(["whatif", str(run), "--remove", "1,"]) == 0
    assert f" {scaled[40]} " in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    page = (run / "report" / "test.html").read_text()
    shown = re.findall(r'<b class="label" dir="auto">([^<]*)</b>|labeled <b dir="auto">([^<]*)</b>', page)
    assert len(shown) > 40
    assert {float(a or b) for a, b in ((a.replace("−", "-"), b.replace("−", "-")) for a, b in shown)} <= set(
        map(float, scaled)
    )


@pytest.mark.parametrize(
    ("term", "tokenized", "hint"), [("token", False, True), ("token", True, False), ("pixel", False, False)]
)
def test_tokens_without_a_tokenizer_are_positions_without_quotes_and_a_line_says_what_gives_text(
    term, tokenized, hint, capsys
):
    pair = {
        "target": 0, "example": 1, "score": 0.5, "values": np.array([[0.5]]), "target_tokens": ["31"], "example_tokens": ["27"],
        "target_positions": np.array([4]), "example_positions": np.array([19]),
    }  # fmt: skip
    _print_all([pair, pair], term, tokenized=tokenized)
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert ("19 '27' 4 '31'" in printed) == tokenized
    assert printed.count("as text with an attribute tokenizer of the DataModule") == hint
