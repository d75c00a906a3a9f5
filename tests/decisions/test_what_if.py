"""Outputs without a set of training samples are those of models that were refitted without it, where a closed form exists."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from trak_lightning import TRAK
from trak_lightning.errors import DataError, SettingsError, StaleRowsError, TrakError
from trak_lightning.run.meaning import Meaning
from trak_lightning.tasks.classification import Classification

RIDGE = 3.0


@pytest.fixture(scope="module")
def problem():
    generator = np.random.default_rng(0)
    x, z = generator.standard_normal((60, 5)), generator.standard_normal((7, 5))
    x[0] *= 4
    x[1] = x[0]  # twins: one alone is replaced by the other
    return x, x @ generator.standard_normal(5) + generator.standard_normal(60), z


def ridge(x, y):
    return np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)


def scored(model, task, train, targets, folder, scorer):
    trak = TRAK(model.double().eval(), task, folder, projector="identity", store={"name": "hdf5", "dtype": "float64"})
    trak.featurize(TensorDataset(*map(torch.tensor, train)))
    trak.score(TensorDataset(*map(torch.tensor, targets)), name="test", scorer=scorer)
    return trak


@pytest.fixture
def fitted(problem, tmp_path):
    x, y, z = problem
    model = nn.Linear(5, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(ridge(x, y)))
    scorer = {"name": "trak", "regularization": RIDGE, "weights": "gauss_newton"}
    return scored(model, "regression", (x, y), (z, np.zeros(7)), tmp_path, scorer)


@pytest.mark.parametrize("removed", [[4], [0, 1], list(range(10, 50))], ids=["one", "twins", "more than dimensions"])
def test_it_is_the_exact_refit_of_a_ridge_regression(removed, problem, fitted):
    x, y, z = problem
    rest = np.setdiff1d(np.arange(60), removed)
    found = fitted.what_if("test", regularization=RIDGE, weights="gauss_newton").remove(removed)
    np.testing.assert_allclose(found.change, z @ (ridge(x[rest], y[rest]) - ridge(x, y)), rtol=1e-6, atol=1e-9)


def test_a_set_of_twins_changes_more_than_the_sum_of_its_scores(problem, fitted):
    found = fitted.what_if("test", regularization=RIDGE, weights="gauss_newton").remove([0, 1])
    scores = fitted.run.scores("test")
    from trak_lightning import Scores

    np.testing.assert_allclose(found.summed, -np.asarray(Scores(scores).values)[:, :2].sum(1), rtol=1e-5)
    assert np.abs(found.change).sum() > 1.05 * np.abs(found.summed).sum()


def squared_error(model, batch):
    return (model(batch[0])[:, 0] - batch[1]) ** 2


def test_it_is_one_newton_step_of_a_logistic_regression(problem, tmp_path):
    x, y, z = problem
    labels, theta = (y > 0).astype(int), np.full(5, 0.3)
    model = nn.Linear(5, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(theta))
    scorer = {"name": "trak", "regularization": RIDGE, "weights": "gauss_newton"}
    trak = scored(model, "binary_classification", (x, labels), (z, np.ones(7, int)), tmp_path, scorer)
    removed = np.arange(12)
    found = trak.what_if("test", regularization=RIDGE, weights="gauss_newton").remove(removed)
    before, after = found.probabilities(trak.spec.task.meaning)
    np.testing.assert_allclose(before, 1 / (1 + np.exp(-z @ theta)), rtol=1e-6)
    np.testing.assert_allclose(after, 1 / (1 + np.exp(-z @ theta - found.change)), rtol=1e-6)
    sign = 2 * labels - 1
    p = 1 / (1 + np.exp(-sign * (x @ theta)))
    rest = np.arange(12, 60)
    hessian = (x[rest] * (p * (1 - p))[rest, None]).T @ x[rest] + RIDGE * np.eye(5)
    step = np.linalg.solve(hessian, (sign * (1 - p))[removed] @ x[removed])
    np.testing.assert_allclose(found.change, -z @ step, rtol=1e-6)


@pytest.mark.parametrize("unit", [0.01, 1.0, 100.0])
def test_changes_of_a_regression_have_the_unit_of_its_labels(unit, problem, tmp_path):
    x, y, z = problem
    model = nn.Linear(5, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(unit * np.linalg.lstsq(x, y, rcond=None)[0]))
    trak = scored(model, "regression", (x, unit * y), (z, np.zeros(7)), tmp_path, "trak")
    removed = np.arange(12)
    found = trak.what_if("test", regularization=1e-9).remove(removed)
    rest = np.arange(12, 60)
    change = z @ np.linalg.lstsq(x[rest], y[rest], rcond=None)[0] - z @ np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(found.change, unit * change, rtol=1e-4)


def test_changes_of_minus_a_loss_are_sums_of_scores(problem, tmp_path):
    x, y, z = problem
    loss = {"name": "loss", "function": squared_error}
    trak = scored(nn.Linear(5, 1, bias=False).double(), loss, (x, y), (z, np.zeros(7)), tmp_path, "trak")
    found = trak.what_if("test").remove([3, 0, 1])
    assert "f is minus the loss, changes are sums of scores" in found.caution
    np.testing.assert_array_equal(found.change, found.summed)


def test_an_answer_says_whether_its_set_is_too_large(fitted):
    what_if = fitted.what_if("test", regularization=RIDGE, weights="gauss_newton")
    small, large = what_if.remove([3]), what_if.remove(np.arange(13))
    assert 0 < small.leverage < large.leverage < 1
    assert small.caution.startswith("trust the order more than the size: measured changes were 0.5 to 2 times")
    assert large.caution.startswith("too large to be trusted: 21.7 % of the training set, compared with retraining up")
    assert (small.reliable, large.reliable) == (True, False)
    assert repr(large).endswith(
        "; too large to be trusted: 21.7 % of the training set, compared with retraining up to 20 %"
    )
    assert len(repr(small)) < 200


def test_an_answer_is_shown_with_the_targets_that_were_scored_and_is_a_frame(problem, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    x, y, z = problem
    classes = (y > 0).astype(int)
    task = "image_classification"
    trak = scored(nn.Linear(5, 2).double(), task, (x, classes), (z, np.arange(7) % 2), tmp_path, "trak")
    removal = trak.what_if("test").remove([3, 4])
    removal.show(2)
    shown = capsys.readouterr().out
    assert shown.startswith(f"Without 2 of 60 training samples\nCaution: {removal.caution}\nChanges: f, log-odds")
    worst, row = int(removal.order()[0]), shown.splitlines()[5]
    assert row.split()[0] == str(worst)
    assert f" → {removal.probabilities()[1][worst]:.2f}  {worst % 2}  " in " ".join(row.split(" ")).replace(
        "     ", "  "
    )
    frame = removal.to_frame()
    assert frame["target"].tolist() == removal.order().tolist()
    assert frame["label"].tolist() == [str(target % 2) for target in frame["target"]]
    assert frame["probability_after"].tolist() == removal.probabilities()[1][removal.order()].tolist()
    assert pickle.loads(pickle.dumps(removal)).targets is None
    again = TRAK(trak.model, task, tmp_path, projector="identity", store=trak.store)
    again.what_if("test").remove([3, 4]).show(2)
    assert "label " not in capsys.readouterr().out.splitlines()[4].replace("p(label)", ""), "the data is not at hand"


@pytest.mark.parametrize(
    ("others", "caution"),
    [
        (1.3, "trust the order, not the size: these samples stand in for each other"),
        (0.1, "not to be trusted for targets like these samples: "),
    ],
)
def test_a_set_that_hardly_anything_else_is_like_is_trusted_less(others, caution, problem, tmp_path):
    x, y, z = problem
    x = x.copy()
    x[:10] = 9 * np.eye(5)[0]  # nearly all that is known of the first direction
    x[10:, 0] *= others
    model = nn.Linear(5, 1, bias=False).double()
    scorer = {"name": "trak", "regularization": RIDGE, "weights": "gauss_newton"}
    trak = scored(model, "regression", (x, y), (z, np.zeros(7)), tmp_path, scorer)
    found = trak.what_if("test", regularization=RIDGE, weights="gauss_newton").remove(np.arange(10))
    assert found.stretch > 2.5
    assert found.caution.startswith(caution)
    assert found.trust == found.caution  # its name of earlier versions
    alone = replace(found, samples=found.samples[:1]).caution
    assert ("the models fit this sample by itself" in alone) is ("stand in for each other" in caution)


class Scaled(nn.Module):
    """A regression whose gradients have another size under each checkpoint."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 1, bias=False)
        self.register_buffer("size", torch.ones(()))

    def forward(self, x):
        return self.size * self.linear(x)


def test_twins_that_one_of_the_checkpoints_knows_by_heart_are_not_trusted(problem, tmp_path):
    x, y, z = problem
    x = np.where(np.arange(60)[:, None] < 2, 9 * np.eye(5)[0], 0.1 * x)
    model = Scaled().double().eval()
    states = [{**model.state_dict(), "size": torch.tensor(size, dtype=torch.float64)} for size in (0.1, 1.0)]
    leverages = []
    for name, checkpoints in (("one", states[:1]), ("other", states[1:]), ("both", states)):
        trak = TRAK(model, "regression", tmp_path / name, projector="identity")
        trak.featurize(TensorDataset(torch.tensor(x), torch.tensor(y)), checkpoints)
        trak.score(TensorDataset(torch.tensor(z), torch.zeros(7, dtype=torch.float64)), name="test")
        found = trak.what_if("test", regularization=RIDGE, weights="gauss_newton").remove([0, 1])
        leverages.append(found.leverage)
    assert leverages[0] < 0.5 < 0.95 < leverages[1]
    assert leverages[2] == pytest.approx(leverages[1])
    assert not found.reliable


def test_rows_that_were_replaced_are_not_mixed_with_factors_of_the_earlier_ones(problem, fitted):
    x, y, _ = problem
    what_if = fitted.what_if("test", regularization=RIDGE, weights="gauss_newton")
    before = what_if.remove([5]).change
    corrected = y.copy()
    corrected[5] += 1
    fitted.featurize(TensorDataset(torch.tensor(x), torch.tensor(corrected)), repair=True)
    with pytest.raises(StaleRowsError, match="rows of 'train' were replaced since this WhatIf was made"):
        what_if.remove([5])
    assert (
        abs(fitted.what_if("test", regularization=RIDGE, weights="gauss_newton").remove([5]).change - before).max()
        > 1e-3
    )


def test_a_mask_and_positions_are_the_same_set(fitted):
    what_if = fitted.what_if("test", regularization=RIDGE)
    mask = np.zeros(60, dtype=bool)
    mask[[5, 3]] = True
    assert what_if.remove(mask).samples.tolist() == what_if.remove([5, 3]).samples.tolist() == [3, 5]
    assert what_if.remove(3).samples.tolist() == [3]


def test_a_word_among_numbers_is_answered_in_words_of_python_and_no_frame_of_ours_is_shown(fitted):
    with pytest.raises(DataError) as refused:
        fitted.where("y=malign")
    assert str(refused.value).endswith(
        "; a mapping that render= returns for a sample, where(…, render=lambda sample: {'y': …}), may have words for them"
    )
    for ask in (
        lambda: fitted.where("y=malign"),
        lambda: fitted.what_if("test", regularization=-1),
        lambda: fitted.select("test"),
        lambda: fitted.select(5, "none"),
        lambda: fitted.suspects(fdr=2),
        lambda: fitted.report(TensorDataset(torch.zeros(1)), name="none"),
        lambda: fitted.token_scores(
            TensorDataset(torch.zeros(7, 5).double(), torch.zeros(7).double()), [(0, 0)], "test"
        ),
    ):
        with pytest.raises(TrakError) as found:
            ask()
        assert {Path(str(each.path)).name for each in found.traceback} == {"test_what_if.py", "tracebacks.py"}
        assert len(found.traceback) == 3  # this test, ask, and where it is raised again


def test_with_several_checkpoints_the_probability_is_called_that_of_the_mean_output(fitted, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    removal = fitted.what_if("test", regularization=RIDGE).remove([3])
    for count, heading in ((1, "p(label)"), (2, "p(label) of mean f")):
        replace(removal, meaning=Classification.meaning, num_checkpoints=count, targets=None).show(1)
        assert capsys.readouterr().out.splitlines()[4].split("change")[1].strip() == heading


@pytest.mark.parametrize("meaning", [Meaning(number=True), Classification.meaning])
def test_where_not_even_signs_are_to_be_trusted_no_number_is_shown(meaning, fitted, capsys):
    removal = fitted.what_if("test", regularization=RIDGE).remove([3])
    removal = replace(removal, meaning=meaning, num_checkpoints=3, targets=None)
    removal.show(1)
    assert "→" in capsys.readouterr().out
    alone = replace(removal, leverage=0.99)
    alone.show(9)
    summary, *rows = capsys.readouterr().out.partition("Changes: ")[2].splitlines()
    falls, rises = (removal.change < 0).sum(), (removal.change > 0).sum()
    assert summary.endswith(f"falls for {falls} of 7 targets and rises for {rises}")
    below = rows.index("f rises most for")
    assert [row.split() for row in rows[2:below]] == [[str(each), "falls"] for each in alone.sides(9)[0]]
    assert [row.split() for row in rows[below + 2 :]] == [[str(each), "rises"] for each in alone.sides(9)[1]]
    assert "→" not in "".join(rows)
    assert f"7 outputs change, {falls} of them downwards; not to be trusted" in repr(alone)
    assert alone.to_frame()["change"].tolist() == removal.change[removal.order()].tolist()
    assert alone.to_json()["change"] == removal.change.tolist()


def test_conditions_on_columns_give_the_positions_that_fulfill_them(problem, fitted):
    x, y, _ = problem
    assert fitted.where("x[0]>0.5 and y<=0").tolist() == np.flatnonzero((x[:, 0] > 0.5) & (y <= 0)).tolist()
    assert fitted.where("age>0.5", feature_names=[*"abcd", "age"]).tolist() == np.flatnonzero(x[:, 4] > 0.5).tolist()
    fitted._job.splits["train"].dataset.feature_names = [*"abcd", "age"]
    assert fitted.where("age>0.5").tolist() == np.flatnonzero(x[:, 4] > 0.5).tolist()
    shown = fitted.where("sign=up", render=lambda sample: {"sign": "up" if sample[1] > 0 else "down"})
    assert shown.tolist() == np.flatnonzero(y > 0).tolist()
    with pytest.raises(
        DataError,
        match=r"no column 'town'; .* are a, b, c, d, age, x\[0\] … x\[4\], y\. .*render=.*remove\(\) a mask or pos",
    ):
        fitted.where("town=Ulm")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([60], "sample 60 is out of range: the training set has samples 0 … 59"),
        (-1, "sample -1 is out of range"),
        ([0.5], "expected positions, integers"),
        ("age>60", r"got the text 'age>60'. where\('age>60'\) of the TRAK object returns"),
        ([5, 3, 5], "sample 5 is given 2 times; positions must be distinct"),
        (np.arange(60) % 2, r"If these 60 integers are a mask, make it boolean: mask.astype\(bool\)"),
        (
            [],
            "^the set of samples must hold some of the 60 training samples and not all, and it is empty; give at least one position",
        ),
        (range(60), "and not all, and it holds all 60 training samples; leave at least one out"),
        (np.ones(7, dtype=bool), "a mask of 60 bools; got bool of shape"),
    ],
)
def test_samples_that_are_no_set_are_refused(samples, message, fitted):
    with pytest.raises(DataError, match=message):
        fitted.what_if("test", regularization=RIDGE).remove(samples)


@pytest.mark.parametrize(
    "wrong",
    [{"regularization": each} for each in ("nonsense", -1, None, "trace/0")] + [{"weights": "nonsense"}],
    ids=lambda wrong: f"{wrong}",
)
def test_settings_that_a_scorer_refuses_are_refused_by_name(wrong, fitted):
    for ask in (lambda: fitted.what_if("test", **wrong), lambda: fitted.self_influence(**wrong)):
        with pytest.raises(SettingsError, match=f"{next(iter(wrong))} must be .*{next(iter(wrong.values()))}"):
            ask()
