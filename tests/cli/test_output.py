"""What commands print of results that are small, or that are not there."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trak_lightning.authoring import write_matrix
from trak_lightning.cli import main
from trak_lightning.cli.commands import suspects
from trak_lightning.cli.output import print_results
from trak_lightning.cli.shown_samples import ShownOrSaidWhyNot, ShownSamples
from trak_lightning.decisions.columns import columns_of
from trak_lightning.decisions.predictions import Predictions
from trak_lightning.decisions.removal import Removal
from trak_lightning.decisions.suspects import Suspects
from trak_lightning.evaluation.result import Result
from trak_lightning.report import Samples
from trak_lightning.run.meaning import Meaning
from trak_lightning.run.sample_lines import SampleLine
from trak_lightning.scoring.display import CLASS_NAMES, PICTURES, RENDER, to_read


def test_a_run_directory_that_holds_scores_alone_is_complete(tmp_path, capsys):
    write_matrix(tmp_path, "replayed", np.ones((2, 3), np.float32), "replay", {})
    assert main(["verify", str(tmp_path)]) == 0
    assert f"verify     1 score file in {tmp_path}: all present and as written (1 checked" in capsys.readouterr().out
    assert main(["info", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "run trak featurize" not in shown
    assert shown.splitlines()[-1] == "scores replayed: 2 targets × 3 training samples, replay"


def test_info_says_what_evaluations_found_and_where_pages_are(tmp_path, capsys):
    write_matrix(tmp_path, "test", np.ones((2, 3), np.float32), "replay", {})
    for folder, name, content in (
        ("report", "test.html", "<html>"),
        ("suspects", "indices.npy", ""),
        ("evaluation", "broken.json", "{}"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(content)
    Result("mislabeled", "Labels", "How", "12 of 20 found", ("a",), (("1",),), {}).write(
        tmp_path / "evaluation/mislabeled-test.json"
    )
    assert main(["info", str(tmp_path)]) == 0
    broken, found, suspects, page = capsys.readouterr().out.splitlines()[-4:]
    assert suspects.startswith("suspects in ")
    assert broken.startswith("evaluation broken: ")
    assert found == "evaluation mislabeled-test: 12 of 20 found"
    assert page.endswith("report/test.html")
    assert main(["info", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluations"]["mislabeled-test"] == "12 of 20 found"


def test_an_evaluation_of_nothing_is_a_line(capsys):
    print_results([], lambda: True)
    assert capsys.readouterr().out == "evaluate   nothing is asked for: evaluation.models is 0\n"


def removal(change, spread, outputs, n=9, **others):
    return Removal(np.array([7]), change, spread, change, outputs, 0.1, n, **others)


def test_targets_that_lose_are_apart_from_those_that_gain(capsys):
    change = np.array([0.5, -0.25, 0.0, 0.125])
    numbers = change, np.full(4, np.nan), np.zeros(4)
    found = removal(*numbers, meaning=Meaning("log-odds", probability="output"), num_checkpoints=3)
    assert found.sides(1) == ([1], [0])
    assert found.sides(10) == ([1], [0, 3])
    assert removal(*numbers, meaning=Meaning("a number")).describe() == (
        "f, a number, falls for 1 of 4 targets and rises for 2, on average by +0.094"
    )
    several = found.describe()
    assert several.startswith("f, log-odds (mean over 3 checkpoints), falls")
    assert several.endswith("; p(label) of the mean f falls below 0.5 for 0 and rises above it for 2")
    samples = ShownSamples({1: SampleLine("cat", "[b] a line")})
    found.print_targets(([1], []), samples)
    title, headings, row = capsys.readouterr().out.splitlines()
    assert (title.split(), headings.split()) == (
        ["f", "falls", "most", "for"],
        ["target", "f", "now", "change", "p(label)", "of", "mean", "f", "label", "sample"],
    )
    assert row.split() == ["1", "0", "-0.25", "0.50", "→", "0.44", "cat", "[b]", "a", "line"]


def test_what_is_not_to_be_trusted_has_few_digits(capsys):
    numbers = np.array([-1.2345]), np.array([0.0123]), np.array([7.654321])
    for n, row in ((9, ["0", "7.65", "-1.234", "±", "0.012"]), (2, ["0", "7.7", "-1"])):
        removal(*numbers, n).show()
        assert capsys.readouterr().out.splitlines()[-1].split() == row


@pytest.mark.parametrize(("held_out", "count", "shown"), [(0, 1, False), (2, 1, True), (2, 0, False)])
def test_the_probability_of_a_wrong_label_is_shown_where_it_is_an_estimate(held_out, count, shown, capsys):
    log_p = np.log(np.array([[0.9, 0.1], [0.1, 0.9]]))
    predictions = Predictions(log_p, np.array([1, 1]), np.full(2, held_out))
    suspects._print(
        Suspects(np.array([0, 1]), count, 0.1, None, None, "b", np.array([1.0, 0.1]), predictions=predictions), 2
    )
    printed = capsys.readouterr().out
    assert ("100%" in printed) is ("wrong" in printed) is shown


def test_numbers_to_predict_are_printed_without_exponents_and_the_error_once(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    numbers, predicted = np.array([30_200.0, 4_800.0]), np.array([13_956.43, 18_734.71])
    errors = np.abs(numbers - predicted)
    suspects._print(
        Suspects(
            np.array([0, 1]), 0, 0.1, None, None, "b", errors, numbers=numbers, predicted=predicted, models=np.ones(2)
        ),
        2,
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:3]]
    assert rows[0][:7] == ["0", "30200", "13956", "16244", "label", "above", "the"]
    assert rows[1][:7] == ["1", "4800", "18735", "13935", "label", "below", "the"]
    change = np.array([-4_386.2, 120.4])
    found = change, np.array([213.0, 18.2]), np.array([16_812.0, 7_305.0])
    removal(*found, meaning=Meaning("prediction", number=True)).print_targets(([0], []), None)
    _, headings, row = capsys.readouterr().out.splitlines()
    assert headings.split() == ["target", "prediction", "change"]
    assert row.split() == ["0", "16812", "→", "12426", "-4386", "±", "213"]


def test_a_number_and_its_percent_sign_are_on_one_line_of_a_narrow_table(capsys, monkeypatch):
    log_p = np.log(np.array([[0.02, 0.98], [0.004, 0.996]]))
    names = [f"a class with a name of {word} words" for word in ("some", "more")]
    for columns in range(40, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        found = Predictions(log_p, np.array([0, 0]), np.full(2, 3))
        suspects._print(
            Suspects(np.array([1, 0]), 0, 0.1, None, None, "b", np.ones(2), predictions=found, class_names=names), 2
        )
        printed = capsys.readouterr().out
        assert all(share in printed for share in ("98%", "2%", ">99%", "<1%")), columns


def test_suspects_whose_samples_cannot_be_shown_are_listed_all_the_same_and_the_reason_is_said_once(capsys):
    samples = ShownOrSaidWhyNot(ShownSamples({1: SampleLine(None, "why? → so")}))
    found = Suspects(np.array([1, 2, 0]), 0, 0.1, None, None, "loss", np.array([0.1, 3, 2]), samples=samples)
    assert [each.text for each in found.first(3)] == ["why? → so", None, None]
    assert capsys.readouterr().err == "samples are not shown: KeyError: 2\n"


def test_a_mask_is_told_from_its_image():
    image, mask = torch.rand(3, 16, 16), torch.ones(16, 16, dtype=torch.long)
    assert Samples([(image, mask)]).show(0).line == "image 16×16 · mask 16×16"
    assert Samples([{"photo": image, "seg": mask}]).show(0).line == "photo 16×16 · seg 16×16"


def test_columns_are_entries_or_public_attributes():
    graph = SimpleNamespace(name="mol4", _cache=None)
    assert columns_of(graph) == columns_of({"name": "mol4"}) == {"name": "mol4"}
    assert columns_of((torch.zeros(2), 1)).keys() == {"x", "y"}


@pytest.mark.parametrize(
    ("lines", "alike"),
    [
        (["image 28×28", "image 28×28"], True),
        (["Data", "Data"], True),
        (["x of shape (4, 4) edges of shape (2, 12)", "x of shape (5, 4) edges of shape (2, 15)"], True),
        (["image 640×480 a cat", "image 640×480 a dog"], False),
        (["age: 54 · sex: male", "age: 54 · sex: male"], False),
        (["image 28×28"], False),
        (["image 16×8 (w×h)", "image 12×8 (w×h)"], True),
        (["image 16×8 (w×h) · mask 16×8 (w×h)", "image 12×8 (w×h) · mask 12×8 (w×h)"], True),
        (["Graph: 6 nodes, 12 edges", "Graph: 9 nodes, 18 edges"], True),
        (["Graph: mol3, 6 nodes, 12 edges", "Graph: mol4, 9 nodes, 18 edges"], False),
        (["x0[0]: 2 · x0[1]: 1", "x0[0]: 1 · x0[1]: 2"], True),
    ],
)
def test_rows_that_do_not_tell_samples_apart_say_what_does(lines, alike):
    def to_read_with(label):
        return to_read([SampleLine(label, line) for line in lines])

    assert (RENDER in to_read_with("3")) is (alike and "image" not in lines[0])
    assert ("feature_names of the DataModule" in to_read_with("3")) is ("x0[0]: " in lines[0])
    assert (PICTURES in to_read_with("3")) is (alike and "image" in lines[0])
    assert "TRAK.score" not in to_read_with("3"), "a command has none"
    assert CLASS_NAMES in to_read_with("1, 4")
    assert not any(CLASS_NAMES in to_read_with(label) for label in ("3", None, "left, right"))
