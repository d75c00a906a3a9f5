"""What the objects of the Python interface look like in a terminal and in a notebook."""

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import nn
from torch.utils.data import TensorDataset

import trak_lightning
from trak_lightning import TRAK
from trak_lightning.api import TRAKER_ARGUMENTS
from trak_lightning.cli import main
from trak_lightning.errors import CheckpointError, DataError, TerminatedError, TrakError
from trak_lightning.model.checkpoints import CheckpointWarning
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.base import Scoring
from trak_lightning.scoring.scores import Scores, write_matrix, write_scores
from trak_lightning.scoring.trak import Trak

HOSTILE = "<script>alert(1)</script>"


class Named(TensorDataset):
    classes = ("cat", HOSTILE)


@pytest.fixture(scope="module")
def trak(tmp_path_factory):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    made = TRAK(model, task="image_classification", run_dir=tmp_path_factory.mktemp("run"), projector="identity")
    states = [{name: scale * tensor for name, tensor in model.state_dict().items()} for scale in (1, 2)]
    made.featurize(Named(torch.rand(20, 1, 4, 4), torch.arange(20) % 2), states)
    return made


@pytest.fixture(scope="module")
def targets():
    return Named(torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 2)


@pytest.fixture(scope="module")
def scores(trak, targets):
    return trak.score(targets, name="test")


def test_trak_says_what_it_is(trak, scores):
    assert repr(trak).startswith("TRAK(Sequential of 34 parameters, ImageClassification, Identity to k = 34, run_dir=")
    assert repr(trak).endswith("2 checkpoints, features: test, train)")


def test_k_is_named_once_it_is_chosen_and_one_checkpoint_is_not_called_checkpoints(tmp_path):
    trak = TRAK(nn.Linear(3, 1).eval(), task="regression", run_dir=tmp_path)
    assert "Regression, Auto, run_dir=" in repr(trak)
    trak.featurize(TensorDataset(torch.rand(8, 3), torch.rand(8)))
    assert " to k = 4, run_dir=" in repr(trak)
    assert repr(trak).endswith("; 1 checkpoint, features: train)")


def test_scores_are_a_matrix_and_a_sequence_of_targets(scores):
    assert repr(scores).startswith(f"Scores({str(scores.path)!r}): 6 targets × 20 training samples")
    matrix = np.asarray(scores)
    np.testing.assert_array_equal(matrix, scores.values)
    assert (len(scores), np.shape(scores)) == (6, (6, 20))
    assert repr(scores.meaning).startswith("f is the log-odds of the label; p(label) is known; positive scores ")
    np.testing.assert_array_equal([np.asarray(target) for target in scores], matrix)
    np.testing.assert_array_equal(scores[-1], matrix[5])
    assert scores[2].top(3).indices.tolist() == (-matrix[2]).argsort(kind="stable")[:3].tolist()
    with pytest.raises(IndexError, match="target 6 is out of range: .* has targets 0 … 5"):
        scores[6]


def test_one_target_is_chosen_at_a_time(scores):
    with pytest.raises(TypeError, match=r"indexed with one integer, the target, got slice\(3, 5, None\)"):
        scores[3:5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda trak, scores: scores[True], "indexed with one integer, the target, got True"),
        (lambda trak, scores: scores.effects(True), "train True is out of range"),
        (lambda trak, scores: scores.effects("3"), "train '3' is out of range"),
        (lambda trak, scores: scores.plot(targets=[6]), "target 6 is out of range"),
        (lambda trak, scores: scores.plot(targets=[]), "none is given"),
        (lambda trak, scores: trak.what_if("test", regularization=True), "regularization must be a number"),
        (lambda trak, scores: Trak(threshold=True), "threshold must be a number t ≥ 0, got True"),
        (lambda trak, scores: trak.suspects(fdr="0.1"), "fdr, .*, must lie between 0 and 1, got '0.1'"),
        (lambda trak, scores: trak.suspects().first(-1), "count must be an integer, 0 or more, got -1"),
        (lambda trak, scores: trak.suspects()["a"], "indexed with an integer or a slice, got 'a'"),
        (lambda trak, scores: trak.features("train", "1"), "there is no checkpoint '1'"),
    ],
)
def test_numbers_that_are_none_are_refused_by_name(call, message, trak, scores):
    with pytest.raises((TrakError, TypeError, IndexError), match=message):
        call(trak, scores)


def test_answers_are_shown_in_one_line(trak, scores):
    what_if = trak.what_if("test")
    assert repr(what_if) == "WhatIf: 6 targets, 20 training samples, 2 checkpoints"
    removal = what_if.remove([0, 1, 2])
    assert repr(removal).startswith("Removal of 3 of 20 training samples: 6 outputs change by ")
    assert repr(removal).endswith(removal.caution.rpartition(" (")[0])
    found = trak.self_influence()
    assert repr(found).startswith(f"SelfInfluence of 20 training samples, largest: #{found.self_influence.argmax()}, #")


def test_a_target_is_shown_with_labels_where_the_data_is_at_hand_and_as_numbers_elsewhere(
    trak, scores, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "120")
    best = int(scores[1].top(1).indices[0])
    outputs = np.stack([trak.features("test", place).output[:] for place in range(2)])
    probability = expit(outputs).mean(0)[1]
    assert scores.outputs(1) == pytest.approx({"output": outputs.mean(0)[1], "probability": probability}, rel=1e-5)
    scores[1].show(2)
    shown = capsys.readouterr().out
    assert f"Target 1: {HOSTILE}, p(label) {probability:.3f} (mean over 2 checkpoints), image 4×4" in " ".join(
        shown.split()
    )
    assert all(word in shown for word in ("Most helpful", "Most harmful", "cat", "image 4×4", f" {best} "))
    assert "scores.plot() and a report show pictures" in " ".join(shown.split())
    Scores(scores.path)[1].show(2)
    numbers = capsys.readouterr().out
    assert f" {best} " in numbers
    assert "cat" not in numbers
    assert f"Target 1: p(label) {probability:.3f}" in numbers


def test_targets_have_the_names_of_classes_that_the_training_samples_know(trak, targets, capsys):
    unnamed = TensorDataset(*targets.tensors)
    trak.score(unnamed, name="unnamed")[0].show(1)
    assert capsys.readouterr().out.startswith("Target 0: cat, ")


def test_of_an_error_that_is_raised_on_purpose_only_the_users_frames_are_shown(trak, targets):
    images, labels = targets.tensors
    scores = trak.score(targets, name="targets")
    for call in (
        lambda: trak.score(Named(images, labels + 10), name="other"),
        lambda: trak.what_if("targets").remove([10_000]),
        lambda: scores.top(0),
        lambda: Scores(scores.path).mistakes(),
    ):
        with pytest.raises(TrakError) as found:
            call()
        files = {Path(str(each.path)).name for each in found.traceback}
        assert files == {"test_objects.py", "tracebacks.py"}


def test_a_warning_points_to_the_users_line(trak, targets, tmp_path):
    files = [tmp_path / "best.ckpt", tmp_path / "last.ckpt"]
    for file in files:
        torch.save(trak.model.state_dict(), file)
    other = TRAK(trak.model, task="image_classification", run_dir=tmp_path / "run", projector="identity")
    with pytest.warns(
        CheckpointWarning, match="last.ckpt holds the same weights as .*best.ckpt and is left out"
    ) as found:
        other.featurize(targets, files)
    assert [each.filename for each in found] == [__file__]


def raising(error):
    def function(*_):
        raise error

    return function


def test_mistakes_are_the_targets_of_which_the_models_say_another_class_worst_first(
    trak, targets, scores, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    images, labels = targets.tensors
    weight, bias = trak.model[1].weight.detach(), trak.model[1].bias.detach()
    logits = torch.stack([images.flatten(1) @ (scale * weight).T + scale * bias for scale in (1, 2)])
    p = logits.softmax(-1).mean(0).numpy()
    of_label = p[range(6), labels]
    wrong = scores.mistakes()
    assert wrong.indices.tolist() == [i for i in of_label.argsort() if p[i].argmax() != labels[i]]
    assert 0 < len(wrong) < 6
    worst = wrong[0]
    assert (worst.label, worst.says) == (Named.classes[labels[worst.target]], Named.classes[p[worst.target].argmax()])
    assert [worst.says_probability, worst.probability] == pytest.approx(
        [p[worst.target].max(), of_label[worst.target]], abs=1e-4
    )
    assert repr(wrong).startswith(f"{len(wrong)} of 6 targets, worst first")
    frame = wrong.to_frame()
    assert frame["target"].tolist() == wrong.indices.tolist()
    assert frame["says"].tolist() == [each.says for each in wrong]
    right = next(i for i in range(6) if i not in wrong.indices)
    for target, said in (
        (worst.target, f"{worst.label}, models say {worst.said}, p(label)"),
        (right, f"{Named.classes[labels[right]]}, p(label)"),
    ):
        scores[target].show(1)
        assert f"Target {target}: {said}" in capsys.readouterr().out
    monkeypatch.setattr(scores.predictor, "says", raising(TerminatedError("SIGTERM received")))
    with pytest.raises(TerminatedError):
        scores[worst.target].show(1)
    monkeypatch.setattr(scores.predictor, "says", raising(CheckpointError("the file is gone")))
    scores[worst.target].show(1)
    assert f"Target {worst.target}: {worst.label}, p(label)" in capsys.readouterr().out
    with pytest.raises(
        DataError, match="does not hold what the models say .*TRAK.score.*, which computes nothing again$"
    ):
        Scores(scores.path).mistakes()
    with pytest.raises(DataError, match="scores of groups"):
        trak.score(targets, name="test", groups=[0, 0, 1, 1, 2, 2]).mistakes()


def test_three_classes_are_right_below_one_half_and_numbers_are_ranked_by_their_error(tmp_path):
    torch.manual_seed(0)
    model, data = nn.Linear(3, 3).eval(), TensorDataset(torch.randn(40, 3), torch.arange(40) % 3)
    trak = TRAK(model, task="image_classification", run_dir=tmp_path / "classes", projector="identity")
    trak.featurize(data)
    scores = trak.score(data, name="test")
    p = model(data.tensors[0]).softmax(-1).detach().numpy()
    assert set(scores.mistakes().indices) == set(np.flatnonzero(p.argmax(1) != data.tensors[1].numpy()))
    assert len(scores.mistakes()) < len(scores.doubtful())

    numbers = TRAK(nn.Linear(3, 1).eval(), task="regression", run_dir=tmp_path / "numbers", projector="identity")
    y = torch.randn(40)
    numbers.featurize(TensorDataset(data.tensors[0], y))
    found = numbers.score(TensorDataset(data.tensors[0], y), name="test").mistakes()
    error = (numbers.model(data.tensors[0])[:, 0] - y).abs().detach().numpy()
    assert found.indices.tolist() == (-error).argsort().tolist()
    assert found[0].error == pytest.approx(error.max(), rel=1e-5)

    def squared_error(model, batch):
        return (model(batch[0]) - 1).square().mean(1)

    task = {"name": "loss", "function": squared_error}
    lossy = TRAK(model, task=task, run_dir=tmp_path / "loss", projector="identity")
    lossy.featurize(data)
    found = lossy.score(data, name="test")
    with pytest.raises(
        DataError,
        match=r"predicts neither classes nor numbers, .* by negative loss instead: scores.outputs\(\)\['output'\]",
    ):
        found.mistakes()
    assert found.outputs()["output"].tolist() == [found.outputs(i)["output"] for i in range(40)]


class Ones(Scoring):
    """Scores of 3 targets and 5 training samples."""

    def __init__(self):
        self.num_targets, self.num_train, self.settings = 3, 5, {}

    def tiles(self, start, stop):
        yield np.ones((stop - start, 5), np.float32)


def test_a_run_of_python_lists_the_targets_with_the_lowest_output_or_probability(trak, scores, tmp_path, capsys):
    p = scores.outputs()["probability"]
    assert main(["top", str(trak.run.path), "--name", "test", "-k", "4"]) == 0
    first, headings, *rows, last = capsys.readouterr().out.splitlines()
    assert first == (
        "6 targets, lowest p(label) first (mean over 2 checkpoints): the run was made in Python, where mistakes() of the scores that "
        "TRAK.score returns predicts targets, if the task does"
    )
    assert headings.split() == ["target", "p(label)"]
    assert [int(row.split()[0]) for row in rows] == p.argsort()[:4].tolist()
    assert [float(row.split()[1]) for row in rows] == pytest.approx(np.sort(p)[:4], rel=1e-2)
    assert (
        last
        == f"The first 4 of 6; -k 6 prints them. To see what moved one: trak top {trak.run.path} --name test --target {p.argmin()}"
    )

    f = np.array([3.0, -2.0, 0.5])
    for outputs, heading, order in (
        ({"output": f}, "output f", [1, 2, 0]),
        ({"output": f, "probability": [0.9, np.nan, 0.2]}, "p(label)", [2, 0]),  # nothing counts in target 1
        ({"output": f, "probability": [np.nan] * 3}, "output f", [1, 2, 0]),
    ):
        write_scores(RunDirectory(tmp_path).scores("some"), Ones(), {}, outputs=outputs)
        assert main(["top", str(tmp_path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (
            found["found"]
            == f"{len(order)} targets, lowest {heading} first: the task predicts neither classes nor numbers, so that no target is right or wrong"
        )
        assert found["indices"] == [each["target"] for each in found["lowest"]] == order
        assert [each["output"] for each in found["lowest"]] == f[order].tolist()
    write_matrix(tmp_path, "some", np.ones((3, 5), np.float32), "by hand", {})
    assert main(["top", str(tmp_path)]) == 2
    assert "some.h5 does not hold the outputs of targets" in capsys.readouterr().err


def test_a_notebook_shows_pictures_and_escapes_the_rest(scores):
    html = scores[1]._repr_html_()
    assert html.count('<img src="data:image/png;base64,') == 10
    assert "&lt;script&gt;" in html
    assert HOSTILE not in html
    assert scores._repr_html_().count("<table>") == 3
    assert "<img" not in Scores(scores.path)._repr_html_()


def test_scores_become_a_table(scores):
    frame = scores.to_frame(k=3)
    assert len(frame) == 6 * 2 * 3
    first = frame[(frame.target == 4) & (frame.side == "helpful")]
    matrix = np.asarray(scores)
    np.testing.assert_array_equal(first.score, np.sort(matrix[4])[::-1][:3])
    np.testing.assert_array_equal(matrix[4, first.train], first.score)
    assert set(frame.train_label) == set(Named.classes)


def test_the_table_of_predicted_numbers_says_raises_and_lowers(tmp_path):
    trak = TRAK(nn.Linear(3, 1).eval(), task="regression", run_dir=tmp_path, projector="identity")
    data = TensorDataset(torch.rand(8, 3), torch.rand(8))
    trak.featurize(data)
    frame = trak.score(data).to_frame(k=8)
    assert set(frame.side) == {"raises", "lowers"}
    assert ((frame.score > 0) == (frame.side == "raises")).all()


def test_scores_are_drawn_next_to_their_targets(scores):
    figure = scores.plot(targets=(0, 5), k=2)
    assert len(figure.axes) == 2 * (1 + 2 + 2)
    assert all(len(axis.images) == 1 for axis in figure.axes)
    assert len(scores.plot(k=2).axes) == 3 * (1 + 2 + 2)
    assert len(scores[5].plot(k=2).axes) == len(scores.plot(5, k=2).axes) == 1 + 2 + 2
    with pytest.raises(DataError, match="there are no samples to draw"):
        Scores(scores.path).plot()


def test_a_report_is_written_from_the_objects_at_hand(trak, scores, targets):
    text = trak.report(targets, name="test").read_text()
    assert "targets are predicted correctly" in text, "checkpoints that were given as state dicts are used"


def test_findings_read_as_a_report(trak, targets):
    findings = trak.check(targets)
    lines = repr(findings).splitlines()
    assert len(lines) >= len(findings)
    assert lines[0].startswith(findings[0].topic)
    assert findings._repr_html_().count("<tr>") == len(findings)


def test_suspects_are_listed_with_their_labels(trak):
    found = trak.suspects()
    first = found.first(1)[0]
    assert repr(first) == f"#{first.index} labeled {first.label}: {first.why}"
    assert repr(first) in repr(found)


def test_names_are_completed():
    assert {"TRAK", "Scores", "Task"} <= set(dir(trak_lightning))


def test_scores_of_another_scorer_under_a_name_replace_the_old_ones_and_this_is_said(trak, targets, caplog):
    first = trak.score(targets, name="one")
    trak.score(targets, name="one", regularization=1.0)
    assert not caplog.text
    found = trak.score(targets, name="one", scorer="tracin")
    assert "one.h5: scores by TracIn replace those by Trak; another name keeps both" in caplog.text
    caplog.clear()
    assert np.array_equal(trak.score(targets, name="one", scorer="tracin").values, found.values)
    assert not caplog.text
    assert not np.array_equal(first.values, found.values)


def test_calls_of_traker_are_answered_with_the_page_that_translates_them(trak):
    for name in ("load_checkpoint", "finalize_features", "start_scoring_checkpoint", "finalize_scores"):
        with pytest.raises(AttributeError, match=f"no attribute '{name}'. Coming from traker, .*page coming-from of"):
            getattr(trak, name)
    assert not hasattr(trak, "nothing")
    with pytest.raises(ImportError, match="the class is TRAK. Coming from traker, .*page coming-from of"):
        from trak_lightning import TRAKer  # noqa: F401
    model, data = nn.Linear(2, 2), TensorDataset(torch.zeros(4, 2), torch.zeros(4))
    for call, arguments, ours in (
        (
            TRAK,
            {"model": model, "task": "image_classification", "train_set_size": 4, "proj_dim": 8},
            'name": "sparse_jl"',
        ),
        (TRAK, {"model": model, "task": "image_classification", "save_dir": "x"}, "save_dir is run_dir"),
        (trak.featurize, {"batch": data[:], "num_samples": 4}, r"featurize\(train_dataset, checkpoints="),
        (trak.score, {"batch": data[:], "num_samples": 4}, "num_samples is read from the dataset"),
    ):
        with pytest.raises(TypeError, match=f"has other arguments: .*{ours}.*page coming-from of"):
            call(**arguments)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nothing'"):
        trak.score(data, nothing=1)


def test_arguments_of_traker_are_none_of_ours():
    for call in (TRAK, TRAK.featurize, TRAK.score):
        assert not set(TRAKER_ARGUMENTS) & set(inspect.signature(call).parameters)


def test_scores_of_a_recorded_training_have_no_features_to_ask(tmp_path, capsys):
    write_matrix(tmp_path, "replayed", np.ones((2, 5), np.float32), "exact", {"request": {}, "repeated_by": "repeat"})
    for options in (["whatif", "--remove", "1,"], ["select", "--budget", "2"]):
        assert main([options[0], str(tmp_path), "--name", "replayed", *options[1:]]) == 1
        error = capsys.readouterr().err
        assert "'replayed' holds scores of a recorded training, and this command computes with features" in error
        assert "Replay.outputs(targets, task, weights)" in error


def test_names_of_classes_reach_mistakes_and_tables(trak, targets, capsys):
    named = trak.score(targets, name="test", class_names=["no", "yes"])
    worst = named.mistakes()[0]
    assert {worst.label, worst.says} == {"no", "yes"}
    named[worst.target].show(2)
    assert f"Target {worst.target}: {worst.label}, models say {worst.said}" in capsys.readouterr().out


def test_names_of_classes_reach_suspects(trak):
    assert {each.says for each in trak.suspects().first(20)} <= {"cat", HOSTILE}


@pytest.mark.parametrize("data", ["test", Path("test")])
def test_a_name_in_place_of_the_data_is_refused(data, trak, targets):
    with pytest.raises(DataError, match=r"the data is .*test.*; expected a dataset or a DataLoader, before the name"):
        trak.score(data, targets)


def test_a_page_says_that_groups_have_scores_of_their_own(trak, targets, tmp_path):
    trak.score(targets, name="single")
    trak.score(targets, name="single", groups=[0, 0, 1, 1, 2, 2])
    page = trak.report(targets, name="single", path=tmp_path / "page.html").read_text()
    assert f"trak top {trak.run.path} --name single-mean" in page


@pytest.mark.parametrize(
    "arguments",
    [
        ["suspects"],
        ["report", "--name", "test"],
        ["tokens", "--target", "0", "--name", "test"],
        ["whatif", "--remove_label", "cat", "--name", "test"],
        ["select", "--budget", "2", "--groups", "label", "--name", "test"],
    ],
)
def test_a_command_that_needs_the_data_of_a_run_made_in_python_says_what_to_call(arguments, trak, scores, capsys):
    command, *options = arguments
    assert main([command, str(trak.run.path), *options]) == 1
    assert re.search(r"config.yaml is missing, .* For a run made in Python, call \w+", capsys.readouterr().err)
