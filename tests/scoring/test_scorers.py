"""Every scorer against its formula, over several checkpoints."""

from dataclasses import replace

import numpy as np
import pytest

from trak_lightning import registry
from trak_lightning.errors import DataError
from trak_lightning.scoring.inner_products import InnerProducts, Part
from trak_lightning.scoring.scores import write_scores
from trak_lightning.scoring.self_influence import self_influence
from trak_lightning.scoring.thresholding import soft_threshold
from trak_lightning.scoring.trak import Trak
from trak_lightning.scoring.views import group_targets, some_targets, unit_norm

N, K, M, TARGETS, RIDGE = 25, 6, 3, 4, 0.4


@pytest.fixture
def arrays(rng):
    return [
        (rng.standard_normal((N, K)), rng.standard_normal((TARGETS, K)), rng.uniform(-0.2, 1, N), rng.uniform(0, 1, N))
        for _ in range(M)
    ]


@pytest.fixture
def sets(arrays, features):
    return [features(X, Z, q, r, checkpoint=str(i)) for i, (X, Z, q, r) in enumerate(arrays)]


def inverse(X, weight):
    return np.linalg.inv((X * weight[:, None]).T @ X + RIDGE * np.eye(K))


def unit(A):
    return A / np.linalg.norm(A, axis=1, keepdims=True)


FORMULAS = {
    "gradient_dot": lambda a: mean(Z @ X.T for X, Z, *_ in a) * mean(q for _, _, q, _ in a),
    "tracin": lambda a: mean(Z @ X.T * q for X, Z, q, _ in a),
    "gradient_cosine": lambda a: mean(unit(Z) @ unit(X * q[:, None]).T for X, Z, q, _ in a),
    "influence": lambda a: mean(Z @ inverse(X, r) @ X.T * q for X, Z, q, r in a),
    "trak": lambda a: mean(Z @ inverse(X, abs(q)) @ X.T for X, Z, q, _ in a) * mean(q for _, _, q, _ in a),
    "leave_one_out": lambda a: (
        mean(Z @ inverse(X, r) @ X.T for X, Z, _, r in a)
        * mean(q / (1 - r * quadratic(X, inverse(X, r))) for X, _, q, r in a)
    ),
}


def mean(values):
    return np.mean(list(values), axis=0)


def quadratic(X, inverse):
    return np.einsum("ij,jk,ik->i", X, inverse, X)


@pytest.mark.parametrize("name", registry.names("scorers"))
def test_it_is_its_formula(name, arrays, sets):
    options = {"regularization": RIDGE} if name in ("trak", "influence", "leave_one_out") else {}
    found = registry.create("scorers", {"name": name, **options}).fit(sets).rows(0, TARGETS)
    np.testing.assert_allclose(found, FORMULAS[name](arrays), rtol=1e-9, atol=1e-12)


def test_every_checkpoint_may_keep_its_own_loss_weights(arrays, sets):
    found = Trak(RIDGE, "none", average="scores").fit(sets).rows(0, TARGETS)
    expected = mean(Z @ inverse(X, np.ones(N)) @ X.T * q for X, Z, q, _ in arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_features_of_unit_length(arrays, sets):
    found = Trak(RIDGE, "none", normalize="unit").fit(sets).rows(0, TARGETS)
    expected = mean(unit(Z) @ inverse(unit(X), np.ones(N)) @ unit(X).T for X, Z, *_ in arrays)
    np.testing.assert_allclose(found, expected * mean(q for _, _, q, _ in arrays), rtol=1e-9)


def test_scores_relative_to_self_influence(arrays, sets):
    found = Trak(RIDGE, "none", average="scores", normalize="self_influence").fit(sets).rows(0, TARGETS)
    expected = mean(
        Z @ inverse(X, np.ones(N)) @ X.T * q / np.sqrt(quadratic(X, inverse(X, np.ones(N)))) for X, Z, q, _ in arrays
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_soft_thresholding(sets):
    plain = Trak(RIDGE).fit(sets).rows(0, TARGETS)
    t = float(np.median(abs(plain)))
    found = Trak(RIDGE, threshold=t).fit(sets).rows(0, TARGETS)
    np.testing.assert_allclose(found, np.sign(plain) * np.maximum(abs(plain) - t, 0), atol=1e-12)
    assert (found == 0).mean() == 0.5
    np.testing.assert_array_equal(soft_threshold(plain, 0.0), plain)


def test_some_targets_in_any_order_score_as_among_all(sets):
    positions, parts = np.array([3, 0, 2, 3]), [Part()] * len(sets)
    found = InnerProducts([some_targets(features, positions) for features in sets], parts).rows(0, len(positions))
    np.testing.assert_allclose(found, InnerProducts(sets, parts).rows(0, TARGETS)[positions], rtol=1e-12)


def test_a_group_scores_the_mean_or_sum_of_its_targets(sets):
    labels = np.array([7, 3, 7, 7])
    plain = Trak(RIDGE).fit(sets).rows(0, TARGETS)
    for reduction, reduce in (("mean", np.mean), ("sum", np.sum)):
        grouped = [group_targets(features, labels, reduction) for features in sets]
        found = Trak(RIDGE).fit(grouped).rows(0, 2)
        np.testing.assert_allclose(found, [reduce(plain[labels == label], axis=0) for label in (3, 7)], rtol=1e-9)


def test_views_keep_the_content_of_the_samples_that_they_show(sets):
    source = sets[0].targets
    hashes = np.arange(1, TARGETS + 1, dtype=np.uint64) * np.uint64(2**62)  # their sums exceed 64 bits
    for block in range(source.spec.num_blocks):
        rows = source.read_block(block)
        source.write_block(block, replace(rows, content=hashes[rows.index]))
    assert (unit_norm(sets[0]).targets.column("content") == hashes).all()
    assert (some_targets(sets[0], np.array([2, 0])).targets.column("content") == hashes[[2, 0]]).all()
    labels = np.arange(TARGETS) % 2
    grouped = group_targets(sets[0], labels).targets.column("content")
    assert grouped.dtype == np.uint64
    assert (grouped == [hashes[labels == label].sum() for label in (0, 1)]).all()


@pytest.mark.parametrize("wrong", [[0, 1], [0.5] * TARGETS])
def test_groups_that_do_not_fit_the_targets_are_refused(wrong, sets):
    with pytest.raises(DataError, match=f"groups must be {TARGETS} integers, one per target"):
        group_targets(sets[0], wrong)


def test_self_influence_and_leverage(arrays, sets):
    found = self_influence(sets, RIDGE, "gauss_newton")
    parts = [(quadratic(X, inverse(X, r)), q, r) for X, _, q, r in arrays]
    np.testing.assert_allclose(found.self_influence, mean(h * abs(q) for h, q, _ in parts))
    np.testing.assert_allclose(found.output_change, mean(h * q for h, q, _ in parts))
    np.testing.assert_allclose(found.leverage, mean(h * r for h, _, r in parts))
    assert (found.leverage < 1).all()


def test_labels_of_a_regression_that_are_too_low_and_too_high_have_the_largest_self_influence(rng, features):
    X, wrong = rng.standard_normal((60, 3)), [3, 30, 41, 55]
    y = X @ [1.0, -2.0, 0.5] + 0.1 * rng.standard_normal(60)
    y[wrong] += [9, -9, 9, -9]
    q = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
    found = self_influence([features(X, X[:1], q, np.ones(60))], weights="gauss_newton").self_influence
    assert sorted(np.argsort(-found)[:4]) == wrong


def test_kept_scores_carry_their_standard_error_over_checkpoints(arrays, sets, tmp_path):
    scores = write_scores(tmp_path / "x.h5", InnerProducts(sets, [Part()] * M, "scores"), {})
    each = np.stack([Z @ X.T * q for X, Z, q, _ in arrays])
    error = each.std(0, ddof=1) / np.sqrt(M)
    found = scores.top(5)
    np.testing.assert_allclose(found.spread, np.take_along_axis(error, found.indices, axis=1), rtol=1e-5)


def test_only_the_best_are_kept_if_asked(sets, tmp_path):
    whole = write_scores(tmp_path / "whole.h5", Trak(RIDGE).fit(sets), {})
    best = write_scores(tmp_path / "best.h5", Trak(RIDGE).fit(sets), {}, top=3)
    assert best.shape == (TARGETS, N)
    for which in ("top", "bottom"):
        for found, expected in zip(getattr(best, which)(3), getattr(whole, which)(3), strict=True):
            np.testing.assert_array_equal(found, expected)
    with pytest.raises(DataError, match="holds the 3 best and worst of each target, and no matrix"):
        best.top(4)
    with pytest.raises(DataError, match="Score again without top"):
        best.effects(0)
    np.testing.assert_array_equal(whole.effects(7), whole.values[:, 7])
