"""What is chosen is what refitting to every possible next sample would choose."""

import csv
import json

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import nn
from torch.utils.data import TensorDataset

from trak_lightning import TRAK
from trak_lightning.decisions import select
from trak_lightning.decisions.select import matching_weights, quotas
from trak_lightning.errors import DataError, SettingsError

RIDGE = 2.0


def linear_run(x, y, z, wanted, folder, task="regression", theta=None):
    model = nn.Linear(x.shape[1], 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(np.zeros(x.shape[1]) if theta is None else theta))
    trak = TRAK(model.eval(), task, folder, projector="identity", store={"name": "hdf5", "dtype": "float64"})
    trak.featurize(TensorDataset(torch.tensor(x), torch.tensor(y)))
    trak.score(TensorDataset(torch.tensor(z), torch.tensor(wanted)), name="test")
    return trak


@pytest.fixture(scope="module")
def problem():
    generator = np.random.default_rng(0)
    x, z, theta = generator.standard_normal((40, 4)), generator.standard_normal((9, 4)), generator.standard_normal(4)
    y = x @ theta + 0.5 * generator.standard_normal(40)
    x[1], y[1] = x[0], y[0]  # twins
    return x, y, z, z @ theta


@pytest.fixture(scope="module")
def fitted(problem, tmp_path_factory):
    return linear_run(*problem, tmp_path_factory.mktemp("run"))


def greedy_by_refitting(x, y, z, wanted, budget, groups=None):
    """Fit a ridge regression to the chosen samples and each other one, and take the best, again and again."""
    middle, chosen, gains = y.mean(), [], []
    y, wanted = y - middle, wanted - middle

    def loss(samples):
        theta = np.linalg.solve(x[samples].T @ x[samples] + RIDGE * np.eye(x.shape[1]), x[samples].T @ y[samples])
        return ((z @ theta - wanted) ** 2).mean()

    while len(chosen) < budget:
        free = [i for i in range(len(x)) if i not in chosen and (groups is None or groups(chosen, i))]
        losses = [loss([*chosen, i]) for i in free]
        gains.append(loss(chosen) - min(losses))
        chosen.append(free[int(np.argmin(losses))])
    return chosen, gains


def test_each_sample_is_the_one_that_refitting_finds_best(problem, fitted):
    found = fitted.select(12, "test", regularization=RIDGE)
    chosen, gains = greedy_by_refitting(*problem, 12)
    assert found.indices.tolist() == chosen
    np.testing.assert_allclose(found.gain, gains, rtol=1e-5, atol=1e-9)


def test_groups_keep_their_shares(problem, fitted):
    groups = np.repeat(["a", "b"], [30, 10])
    found = fitted.select(8, "test", groups=groups, regularization=RIDGE)
    room = {"a": 6, "b": 2}
    chosen, _ = greedy_by_refitting(
        *problem, 8, lambda chosen, i: (groups[chosen] == groups[i]).sum() < room[groups[i]]
    )
    assert found.indices.tolist() == chosen
    assert "2 groups in their shares" in repr(found)


@pytest.mark.parametrize("budget", [1, 7, 10, 19])
def test_quotas_add_up_to_the_budget(budget):
    codes = np.repeat([0, 1, 2], [11, 6, 3])
    found = quotas(codes, budget)
    assert found.sum() == budget
    assert (np.abs(found - np.bincount(codes) * budget / 20) < 1).all()


def test_of_a_classification_the_mean_logistic_loss_falls_by_the_gain(problem, tmp_path):
    x, y, z, wanted = problem
    trak = linear_run(
        0.1 * x, (y > 0).astype(int), 0.1 * z, (wanted > 0).astype(int), tmp_path, "binary_classification"
    )
    found = trak.select(6, "test", regularization="trace/100")
    signs, responses = np.where(y > 0, 0.1, -0.1)[:, None] * x, np.where(wanted > 0, 0.1, -0.1)[:, None] * z
    ridge = 0.5 * (signs**2).sum() / 100  # |q| is 1/2 at θ = 0

    def loss(samples):
        gram = 0.5 * signs[samples].T @ signs[samples] + ridge * np.eye(4)
        return np.logaddexp(0, -responses @ np.linalg.solve(gram, 0.5 * signs[samples].sum(0))).mean()

    falls = [loss(found.indices[:size]) - loss(found.indices[: size + 1]) for size in range(6)]
    np.testing.assert_allclose(found.gain, falls, atol=0.1 * max(falls))
    assert loss(found.indices[:1]) == pytest.approx(min(loss([i]) for i in range(40)), rel=1e-3)


def test_weights_of_a_classification_match_the_gradient_of_the_targets(problem, tmp_path):
    x, y, z, wanted = problem
    labels, of_targets = (y > 0).astype(int), (wanted > 0).astype(int)
    trak = linear_run(x, labels, z, of_targets, tmp_path, "binary_classification")
    found = trak.select(12, "test")
    gradients, of_targets = np.where(y > 0, 1, -1)[:, None] * x, np.where(wanted > 0, 1, -1) @ z
    np.testing.assert_allclose(found.weights, matching_weights(gradients[found.indices], of_targets), atol=1e-4)
    assert found.weights.mean() == pytest.approx(1)


def test_matching_weights_solve_their_least_squares_problem():
    generator = np.random.default_rng(0)
    gradients, wanted = generator.standard_normal((12, 30)), 3 * generator.standard_normal(30)
    wanted -= 9 * gradients[0]  # to be left out
    length, ridge = np.linalg.norm(gradients.sum(0)) / np.linalg.norm(wanted), (gradients**2).sum() / 12
    expected = nnls(
        np.vstack([gradients.T, ridge**0.5 * np.eye(12)]), np.concatenate([length * wanted, np.full(12, ridge**0.5)])
    )[0]
    found = matching_weights(gradients, wanted)
    np.testing.assert_allclose(found, expected / expected.mean(), atol=1e-4)
    assert found[0] == 0


def test_samples_without_a_gradient_weigh_the_same():
    np.testing.assert_array_equal(matching_weights(np.zeros((3, 2)), np.ones(2)), 1)
    np.testing.assert_array_equal(matching_weights(np.ones((3, 2)), np.zeros(2)), 1)
    np.testing.assert_array_equal(matching_weights(np.array([[1.0, 0]]), np.array([-1.0, 0])), 1)


def test_twins_are_not_chosen_one_after_the_other(problem, tmp_path):
    x, y, z, wanted = (each.copy() for each in problem)
    x[:6], y[:6] = x[0] * 3, y[0] * 3
    found = linear_run(x, y, z, wanted, tmp_path).select(8, "test", regularization=1e-3)
    assert np.isin(found.indices, range(6)).sum() <= 1


@pytest.mark.parametrize(("budget", "parts"), [(4, "few"), (20, "many"), (40, "all")])
def test_a_pool_that_exceeds_memory_is_chosen_from_in_parts(budget, parts, problem, fitted, monkeypatch):
    z = problem[2]
    whole = fitted.select(budget, "test", regularization=RIDGE)
    monkeypatch.setattr(select, "MEMORY", 17 * 8 * (4 + len(z) + budget))  # three parts of at most 17
    found = fitted.select(budget, "test", regularization=RIDGE)
    assert len(set(found.indices.tolist())) == budget
    assert found.gain.sum() > (0.95 if parts == "few" else 0.7) * whole.gain.sum()


def test_a_selection_is_an_array_and_says_what_it_is(fitted, tmp_path):
    found = fitted.select(0.25, "test", groups=np.arange(40) % 2, regularization=RIDGE)
    np.testing.assert_array_equal(np.asarray(found), found.indices)
    assert repr(found).startswith("Selection of 10 of 40 training samples (25 %) for 9 targets")
    found.write(tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "indices.npy"), found.indices)
    rows = list(csv.DictReader((tmp_path / "selection.csv").read_text().splitlines()))
    assert [(int(row["index"]), int(row["group"])) for row in rows] == [(i, i % 2) for i in found.indices]
    assert json.loads((tmp_path / "selection.json").read_text())["indices"] == found.indices.tolist()
    frame = found.to_frame()
    assert list(frame.columns) == list(rows[0])
    assert frame["gain"].tolist() == found.gain.tolist()


def test_weights_are_written_and_do_not_outlast_their_selection(problem, fitted, tmp_path):
    x, y, z, wanted = problem
    trak = linear_run(x, (y > 0).astype(int), z, (wanted > 0).astype(int), tmp_path, "binary_classification")
    found = trak.select(5, "test")
    found.write(tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "weights.npy"), found.weights)
    assert json.loads((tmp_path / "selection.json").read_text())["weights"] == found.weights.tolist()
    rows = csv.DictReader((tmp_path / "selection.csv").read_text().splitlines())
    np.testing.assert_allclose([float(row["weight"]) for row in rows], found.weights, rtol=1e-4)
    of_numbers = fitted.select(5, "test")
    of_numbers.write(tmp_path)
    assert of_numbers.weights is None
    assert not (tmp_path / "weights.npy").exists()


@pytest.mark.parametrize("budget", [0, -1, 41, 0.001, 2.5, float("nan"), "10", True])
def test_budgets_that_choose_none_or_more_than_all_are_refused(budget, fitted):
    with pytest.raises(SettingsError, match="budget must be a"):
        fitted.select(budget, "test")


@pytest.mark.parametrize(("budget", "count"), [(1, 1), (np.int64(1), 1), (1.0, 40), (0.5, 20), (5.0, 5), (40, 40)])
def test_a_float_up_to_one_is_a_share_and_an_integer_a_number(budget, count, fitted):
    assert sorted(set(fitted.select(budget, "test").indices)) == sorted(fitted.select(budget, "test").indices)
    assert len(fitted.select(budget, "test")) == count


def test_a_name_in_place_of_the_budget_is_refused(fitted):
    with pytest.raises(
        SettingsError, match=r"got 'test'; the name of the targets comes second: select\(0\.1, 'test'\)"
    ):
        fitted.select("test")


def test_groups_may_be_a_column_of_text(fitted):
    text = np.array(["web", "book"] * 20)
    expected = fitted.select(5, "test", groups=text).indices
    np.testing.assert_array_equal(fitted.select(5, "test", groups=text.astype(object)).indices, expected)


@pytest.mark.parametrize(
    "groups", [np.array([None, "web"] * 20), np.zeros(39, int), np.zeros(40), np.zeros((40, 2), int)]
)
def test_groups_that_are_no_labels_are_refused(groups, fitted):
    with pytest.raises(DataError, match="groups must be 40 labels, integers or text, one per training sample; got"):
        fitted.select(5, "test", groups=groups)
