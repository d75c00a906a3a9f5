"""Choosing λ, and refusing what cannot be right."""

from dataclasses import replace

import numpy as np
import pytest

from trak_lightning.errors import DataError, IncompatibleRunError, IncompleteRunError, SettingsError
from trak_lightning.evaluation.lds import lds
from trak_lightning.scoring.inverse import IllConditionedWarning
from trak_lightning.scoring.linear_system import System
from trak_lightning.scoring.regularization import automatic
from trak_lightning.scoring.trak import Trak
from trak_lightning.scoring.views import FeatureView


@pytest.fixture
def ensemble(features, rng):
    """Ridge regressions on random halves: λ that fits is known, and so is what each would say of the targets."""
    n, k, m, ridge = 120, 40, 15, 60.0
    X, Z = rng.standard_normal((n, k)) * np.linspace(0.1, 2, k), rng.standard_normal((m, k)) * np.linspace(0.1, 2, k)
    y = X @ rng.standard_normal(k) + 5 * rng.standard_normal(n)

    def fit(rows):
        return np.linalg.solve(X[rows].T @ X[rows] + ridge * np.eye(k), X[rows].T @ y[rows])

    sets = []
    for j in range(8):
        subset = np.sort(rng.permutation(n)[: n // 2])
        theta = fit(subset)
        sets.append(
            features(
                X, Z, q=y - X @ theta, outputs=Z @ theta, train_outputs=X @ theta, subset=subset, checkpoint=str(j)
            )
        )
    masks = np.zeros((60, n), dtype=bool)
    for mask in masks:
        mask[rng.permutation(n)[: n // 2]] = True
    outputs = np.stack([Z @ fit(np.flatnonzero(mask)) for mask in masks])
    return sets, masks, outputs


def quality(scorer, ensemble):
    sets, masks, outputs = ensemble
    return lds(scorer.fit(sets).blocks(), masks, outputs).mean()


def test_calibration_comes_close_to_the_best_regularization_on_models_it_has_not_seen(ensemble):
    trace = Trak("auto", "none").fit(ensemble[0]).settings["trace"][0]
    best = max(quality(Trak(relative * trace, "none"), ensemble) for relative in np.logspace(-5, 0, 11))
    assert quality(Trak("calibrate", "none"), ensemble) > 0.97 * best
    curve = Trak("calibrate", "none").fit(ensemble[0]).settings["curve"]
    assert len(curve["relative"]) == len(curve["lds"]["none"])


@pytest.mark.parametrize("checkpoints", [1, 4, 8])
def test_auto_is_a_fraction_of_the_trace_that_falls_with_the_number_of_checkpoints(checkpoints, ensemble):
    sets = [replace(each, subset=None) for each in ensemble[0][:checkpoints]]
    spec = sets[0].train.spec
    settings = Trak("auto").fit(sets).settings
    relative = (0.7 / spec.dim + 1 / spec.num_samples) / checkpoints**0.25
    np.testing.assert_allclose(settings["regularization"], np.array(settings["trace"]) * relative)
    assert settings["rule"] == f"auto: trace/{1 / relative:.0f}"


@pytest.mark.parametrize(("n", "k"), [(400, 400), (1000, 500), (1000, 100)])
def test_the_part_of_the_projection_is_of_the_size_of_the_eigenvalues_that_are_its_noise(n, k):
    """Gradients with four large directions and a tail that k dimensions have no room for."""
    rng = np.random.default_rng(0)
    scale = np.concatenate([[20.0] * 4, np.ones(4996)]) / np.sqrt(5000)
    gradients = rng.standard_normal((n, 5000)) * scale
    features = gradients @ rng.choice([-1.0, 1.0], (5000, k)) / np.sqrt(k)
    values = np.linalg.eigvalsh(features.T @ features)
    noise = values[:-4].mean()
    assert 0.3 * noise < automatic(k, 1, 0.0) * values.sum() < noise


def seen_half(features, rng, n, k, *, weights="residual"):
    """A checkpoint that was trained on half of the samples, with what scores say of the effect of each on itself."""
    X, q, r = rng.standard_normal((n, k)) * np.geomspace(3, 0.01, k), rng.uniform(0.1, 1, n), rng.uniform(0.1, 1, n)
    subset = np.sort(rng.permutation(n)[: n // 2])
    q[subset] *= 0.5
    W = {"residual": q, "none": np.ones(n), "gauss_newton": r, "fisher": q**2}[weights]
    gram = (X * W[:, None]).T @ X

    def effect(regularization):
        leverage = np.einsum("nk,kn->n", X, np.linalg.solve(gram + regularization * np.eye(k), X.T))
        return float((r * q * leverage).mean())

    return features(X, X[:1], q, r, subset=subset), np.trace(gram), effect


@pytest.mark.parametrize("weights", ["residual", "none", "gauss_newton", "fisher"])
@pytest.mark.parametrize(("n", "k"), [(300, 40), (60, 200), (1, 1)])
def test_the_predicted_effect_of_samples_on_themselves_is_that_of_the_inverse(n, k, weights, features, rng):
    checkpoint, trace, effect = seen_half(features, rng, n, k, weights=weights)
    nodes, found = System(checkpoint, weights).own_effects()
    for regularization in np.array([1e-1, 1e-3, 1e-5]) * trace:
        np.testing.assert_allclose((found / (nodes + regularization)).sum(), effect(regularization), rtol=0.2)


@pytest.mark.parametrize(("n", "k"), [(20, 50), (20, 20), (50, 20)])
def test_with_orthogonal_gradients_the_predicted_effect_is_exact(n, k, features, rng):
    size = min(n, k)
    X = np.zeros((n, k))
    X[:size, :size] = np.diag(rng.uniform(0.5, 2, size))
    q, r = rng.uniform(0.1, 1, n), rng.uniform(0.1, 1, n)
    nodes, found = System(features(X, X[:1], q, r), "residual").own_effects()
    squares = (X**2).sum(1)
    for regularization in (1.0, 0.01):
        expected = (r * q * squares / (q * squares + regularization)).mean()
        np.testing.assert_allclose((found / (nodes + regularization)).sum(), expected, rtol=1e-6)


def test_auto_predicts_a_quarter_of_the_observed_effect_before_it_is_shrunk(features, rng):
    n, k = 400, 300
    checkpoint, trace, effect = seen_half(features, rng, n, k)
    [found] = Trak().fit([checkpoint]).settings["regularization"]
    q = checkpoint.train.column("loss_weight")
    member = np.isin(np.arange(n), checkpoint.subset)
    parts = q[~member], q[member]
    seen = parts[0].mean() - parts[1].mean()
    error = sum(part.var(ddof=1) / len(part) for part in parts) / seen**2
    share = (0.3 + error) / (1 + error)
    problem = found / trace - 0.7 / k
    before = (problem * n**share) ** (1 / (1 - share))
    predicted, most = effect(before * trace), checkpoint.train.column("curvature").mean()
    assert predicted / (1 - predicted / most) == pytest.approx(seen / 4, rel=0.15)


@pytest.mark.parametrize("T", [1, 20])
def test_lambda_of_auto_is_not_bounded_by_the_leverage_of_samples_with_many_terms(T, features):
    """Orthogonal samples of T terms, which are learned in more than the one direction that W gives them: λ₁ has a closed form."""
    n, square = 60, 4.0
    q, subset = np.full(n, 0.6), np.arange(0, n, 2)
    q[subset] = 0.45
    r = q * (1 - q) / T
    X = np.sqrt(square) * np.eye(n)
    [found] = Trak("auto", "none").fit([features(X, X[:1], q, r, subset=subset)]).settings["regularization"]
    # Without a sample nothing but λ is in its direction: its effect on itself is r·q·square/λ.
    first = (r * q).mean() * square / ((0.6 - 0.45) / 4)
    relative = 0.7 / n + (first / (n * square)) ** 0.7 * (1 / n) ** 0.3
    assert found / (n * square) == pytest.approx(relative, rel=1e-2)


def test_auto_ignores_subsets_that_training_left_no_trace_of(features, rng):
    X, subset = rng.standard_normal((30, 5)), np.arange(15)
    q = np.where(np.isin(np.arange(30), subset), 0.9, 0.5)  # larger where trained
    expected = Trak().fit([features(X, X[:1], q)]).settings["regularization"]
    for known in (subset, np.arange(30), np.arange(29)):
        checkpoint = features(X, X[:1], q, subset=known)
        assert Trak().fit([checkpoint]).settings["regularization"] == pytest.approx(expected)


def test_auto_does_not_depend_on_the_targets(features, rng):
    X, q, subset = rng.standard_normal((30, 5)), rng.uniform(0, 1, 30), np.arange(0, 30, 2)
    chosen = [Trak().fit([features(X, targets, q, subset=subset)]).settings for targets in (X[:2], 100 * X[:7])]
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(("n", "k"), [(20, 6), (6, 20), (5, 1), (1, 5), (12, 12)])
def test_one_decomposition_serves_every_lambda(n, k, features, rng):
    X, q = rng.standard_normal((n, k)), rng.uniform(0, 1, n)
    left, right, relative = rng.standard_normal((2, k)), rng.standard_normal((3, k)), np.array([1e-1, 1e-3, 1e-5])
    gram = (X * q[:, None]).T @ X
    found = System(features(X, X[:1], q), "residual").products(left, right, relative)
    expected = [left @ np.linalg.solve(gram + r * np.trace(gram) * np.eye(k), right.T) for r in relative]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_calibration_chooses_the_weighting_too(ensemble):
    sets = ensemble[0]
    rng = np.random.default_rng(1)
    # Curvatures that say nothing: whoever weights by them scores worse.
    noisy = [replace(features, train=Noisy(features.train, rng)) for features in sets]
    settings = Trak("calibrate").fit(noisy).settings
    assert set(settings["curve"]["lds"]) == {"none", "residual", "gauss_newton", "fisher"}
    best = max(settings["curve"]["lds"], key=lambda name: max(settings["curve"]["lds"][name]))
    assert settings["weights"] == best
    assert settings["weights"] != "gauss_newton"


class Noisy(FeatureView):
    def __init__(self, source, rng):
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "spec", source.spec)
        object.__setattr__(self, "curvature", rng.exponential(size=source.spec.num_samples) ** 6)

    def read_block(self, block):
        rows = self.source.read_block(block)
        return replace(rows, curvature=self.curvature[rows.index])


def test_a_fraction_of_the_trace_can_be_asked_for(ensemble):
    settings = Trak("trace/300").fit(ensemble[0]).settings
    np.testing.assert_allclose(settings["regularization"], np.array(settings["trace"]) / 300)


def test_calibration_without_subsets_is_refused_with_the_way_out(features, rng):
    sets = [
        features(rng.standard_normal((9, 3)), rng.standard_normal((2, 3)), q=np.ones(9), checkpoint=str(i))
        for i in range(4)
    ]
    with pytest.raises(DataError, match="there are 4, 4 of them without.*regularization='auto'"):
        Trak("calibrate").fit(sets)


@pytest.mark.parametrize("wrong", [-1, "most", float("nan"), None])
def test_a_regularization_that_is_none_is_refused(wrong):
    with pytest.raises(SettingsError, match="regularization must be a number λ ≥ 0, 'trace/N', 'auto' or 'calibrate'"):
        Trak(wrong)


def test_numbers_may_come_as_text():
    assert Trak("1e-3").regularization == 1e-3


def test_unknown_weights_are_refused_with_the_known_ones():
    with pytest.raises(
        SettingsError, match="weights must be one of auto, none, residual, gauss_newton, fisher, got 'q'"
    ):
        Trak(weights="q")


def test_a_singular_gram_matrix_without_regularization_is_warned_of(features, rng):
    X = rng.standard_normal((30, 3)) * [1, 1, 5e-7]
    with pytest.warns(IllConditionedWarning, match="condition number .*regularization='auto'"):
        list(Trak(0.0, "none").fit([features(X, X[:1], q=np.ones(30))]).blocks())


def test_checkpoints_of_different_data_are_refused(features, rng):
    sets = [features(rng.standard_normal((n, 3)), np.ones((1, 3)), q=np.ones(n), checkpoint=str(n)) for n in (9, 10)]
    with pytest.raises(IncompatibleRunError, match="train/10 has 10 samples, and train/9 has 9"):
        Trak().fit(sets)


def test_missing_rows_are_refused(features):
    incomplete = features(np.ones((9, 3)), np.ones((1, 3)), q=np.ones(9))
    del incomplete.train._blocks[1]
    with pytest.raises(IncompleteRunError, match="1 of 2 blocks of train/c are missing"):
        Trak().fit([incomplete])
