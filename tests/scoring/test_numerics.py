"""Hard cases of the linear algebra: against dense float64 solutions."""

import errno
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from trak_lightning.errors import NonFiniteGradientError, SettingsError
from trak_lightning.scoring.base import CheckpointFeatures
from trak_lightning.scoring.gram import WEIGHTINGS, gram
from trak_lightning.scoring.inverse import IllConditionedWarning
from trak_lightning.scoring.linear_system import OutlierWarning, System
from trak_lightning.scoring.ranking import RunningRanking, rank
from trak_lightning.scoring.trak import LeaveOneOut, Trak
from trak_lightning.stores.base import FeatureRows, FeatureSpec
from trak_lightning.stores.hdf5 import HDF5Store


def weights_of(name, q, r):
    return {"none": np.ones_like(q), "residual": np.abs(q), "gauss_newton": r, "fisher": q**2}[name]


def problem(rng, n, k, m=3):
    q = rng.uniform(0, 1, n)
    return rng.standard_normal((n, k)), rng.standard_normal((m, k)), q, q * (1 - q)


@pytest.mark.parametrize("weights", WEIGHTINGS)
@pytest.mark.parametrize(("n", "k"), [(20, 6), (6, 20), (10, 1), (1, 10), (10, 10)])
def test_every_weighting_in_primal_and_dual_form_is_the_dense_solution(weights, n, k, features, rng):
    X, Z, q, r = problem(rng, n, k)
    W = weights_of(weights, q, r)
    expected = Z @ np.linalg.solve((X * W[:, None]).T @ X + 0.3 * np.eye(k), X.T) * q
    found = Trak(0.3, weights).fit([features(X, Z, q, r)]).rows(0, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("k", [3, 30])
def test_features_whose_products_overflow_are_refused_by_sample(k, features, rng):
    X = rng.standard_normal((20, k)).astype(np.float32)
    X[13, 0] = 1e20
    with pytest.raises(NonFiniteGradientError, match=r"overflows: the features of training sample 13 have norm 1e\+20"):
        Trak().fit([features(X, X[:2], np.ones(20))])


@pytest.mark.parametrize("k", [3, 30])
@pytest.mark.parametrize("outliers", [[13], [4, 13]])
@pytest.mark.parametrize("size", [3e2, 1e5, 1e15])
def test_samples_that_dominate_all_scores_are_named(size, outliers, k, features, rng):
    X = rng.standard_normal((60, k)).astype(np.float32)
    X[outliers, 0] = size
    q = np.ones(60)
    named = f"trace of ΦᵀWΦ is that of training samples? {', '.join(map(str, outliers))}, so"
    with pytest.warns(OutlierWarning, match=named) if size > 1e4 else nullcontext():
        Trak().fit([features(X, X[:2], q)])
    q[outliers] = 0  # it has no weight in the matrix and no score
    Trak().fit([features(X, X[:2], q)])


def test_factors_need_not_be_kept_where_the_run_is_read_only(features, rng, tmp_path, monkeypatch):
    X, Z, q, r = problem(rng, 20, 6)
    expected = Trak(0.3).fit([features(X, Z, q, r)]).rows(0, 3)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    found = Trak(0.3).fit([features(X, Z, q, r, cache=tmp_path / "factors")]).rows(0, 3)
    np.testing.assert_array_equal(found, expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("k", [29, 31])
def test_primal_and_dual_agree_where_n_is_about_k(k, features, rng):
    X, Z, q, r = problem(rng, 30, 30)
    # A column of zeros or one less changes the form, not the problem.
    X[:, 29:] = 0
    X, Z = (np.pad(A, ((0, 0), (0, 1)))[:, :k] for A in (X, Z))
    expected = Z @ np.linalg.solve((X * q[:, None]).T @ X + 0.2 * np.eye(k), X.T) * q
    np.testing.assert_allclose(Trak(0.2).fit([features(X, Z, q, r)]).rows(0, 3), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("k", [5, 40])
def test_constant_and_duplicated_rows_share_what_one_of_them_would_get(k, features, rng):
    X = np.repeat(rng.standard_normal((1, k)), 12, axis=0)
    Z, q = rng.standard_normal((2, k)), np.ones(12)
    expected = Z @ X.T / (12 * (X[0] @ X[0]) + 0.5)
    found = Trak(0.5, "none").fit([features(X, Z, q)]).rows(0, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(
        Trak(0.0, "none").fit([features(X, Z, q)]).rows(0, 2), Z @ X.T / (12 * (X[0] @ X[0])), rtol=1e-9
    )


def single_precision(matrix, k, n):
    """The relative error of scores whose products are in single precision, where (matrix + λI) is `matrix`.

    Each entry of the Gram matrix is a product of at most max(k, n) terms. Rounding each term to 24 bits gives relative
    errors of 2⁻²⁴; as these are as good as random, their sum is about √max(k, n)·2⁻²⁴, and twice that is exceeded by few
    entries of any matrix. The solve multiplies relative errors by the condition number at most. In the n × n form, the
    products with the features add errors of the same size on either side of the solve: three in all. The bound does not
    depend on the order in which a matrix library adds. Products in half precision would exceed it: 2⁻¹¹ is 8192 · 2⁻²⁴.
    """
    return 3 * 2 * np.sqrt(max(k, n)) * 2**-24 * np.linalg.cond(matrix)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("k", [8, 60])
def test_features_of_low_precision_are_computed_in_single_precision(dtype, k, features, rng):
    X, Z, q, r = problem(rng, 40, k)
    X, Z = X.astype(dtype), Z.astype(dtype)
    exact = [A.astype(np.float64) for A in (X, Z)]
    matrix = (exact[0] * q[:, None]).T @ exact[0] + np.eye(k)
    expected = exact[1] @ np.linalg.solve(matrix, exact[0].T) * q
    found = Trak(1.0).fit([features(X, Z, q, r)]).rows(0, 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=single_precision(matrix, k, 40) * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_features_stored_in_half_precision_are_scored_as_what_is_read_back(dtype, rng, tmp_path):
    store, sets, X, q = HDF5Store(dtype=dtype), [], rng.standard_normal((60, 8)), rng.uniform(0, 1, 60)
    store.bind(tmp_path)
    for split, phi in (("train", X), ("test", X[:4])):
        created = store.create(FeatureSpec(split, "c", len(phi), 8, 1, 16, {}))
        for block in range(created.spec.num_blocks):
            inside = np.array(created.spec.block_range(block))
            columns = [q[inside].astype(np.float32)] * 3
            created.write_block(block, FeatureRows(inside, phi[inside].astype(np.float32), *columns))
        sets.append(created)
    found = Trak(1.0).fit([CheckpointFeatures(*sets)]).rows(0, 4)
    rounded = sets[0].rows(0, 60).features.astype(np.float64)
    assert 0 < np.abs(rounded - X).max() < 0.02
    q = q.astype(np.float32)
    matrix = (rounded * q[:, None]).T @ rounded + np.eye(8)
    expected = rounded[:4] @ np.linalg.solve(matrix, rounded.T) * q
    np.testing.assert_allclose(found, expected, rtol=0, atol=single_precision(matrix, 8, 60) * np.abs(expected).max())


def test_half_precision_features_do_not_overflow_in_the_gram_matrix(features):
    X = np.full((400, 2), 300.0, dtype=np.float16)
    found = gram(features(X, X[:1], np.ones(400)), "none")
    np.testing.assert_array_equal(found, [[400 * 9e4, 0], [400 * 9e4, 400 * 9e4]])


def test_rows_read_in_other_blocks_give_the_same_within_single_precision(features, rng):
    X, Z, q, r = problem(rng, 900, 64)
    sets = [features(X.astype(np.float32), Z.astype(np.float32), q, r, block_size=b) for b in (1, 7, 128, 900)]
    scores = [Trak("trace/1500").fit([found]).rows(0, 3) for found in sets]
    # Bound: the products of a block are in float32, and (ΦᵀWΦ + λI)⁻¹ amplifies their error by at most trace/λ.
    for other in scores[1:]:
        assert np.abs(other - scores[0]).max() < 1500 * 2**-24 * np.abs(scores[0]).max()


def test_lambda_too_small_to_help_is_warned_of_with_the_condition_number(features, rng):
    X = rng.standard_normal((30, 3)) * [1e8, 1, 1]
    with pytest.warns(IllConditionedWarning, match=r"condition number \d.*λ = 1e-09.*nothing was done"):
        Trak(1e-9, "none").fit([features(X, X[:1], np.ones(30))])


def test_a_matrix_that_cannot_be_factorized_is_solved_by_the_pseudo_inverse(features, rng):
    X = rng.standard_normal((30, 1)) @ rng.standard_normal((1, 4)) * 1e6
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", IllConditionedWarning
        )  # the matrix is singular up to rounding, whose sign decides
        found = Trak(1e-12, "none").fit([features(X, X[:2], np.ones(30))]).rows(0, 2)
    np.testing.assert_allclose(found, X[:2] @ X.T / (X**2).sum(), rtol=1e-3)


@pytest.mark.parametrize("scorer", [Trak, LeaveOneOut])
@pytest.mark.parametrize("weights", ["none", "residual"])
@pytest.mark.parametrize(("n", "k"), [(20, 1), (20, 5), (1500, 5), (20, 40), (20, 500)])
def test_equal_samples_in_single_precision_get_the_closed_form_without_regularization(
    scorer, weights, n, k, features, rng
):
    X = np.repeat(rng.standard_normal((1, k)), n, axis=0).astype(np.float32)
    Z, q = rng.standard_normal((3, k)).astype(np.float32), np.full(n, 0.3)
    w = {"none": 1.0, "residual": 0.3}[weights]
    # ΦᵀWΦ = n·w·φφᵀ has one eigenvalue, n·w·‖φ‖²; each sample has leverage 1/n.
    exact = [A.astype(np.float64) for A in (X, Z)]
    expected = exact[1] @ exact[0].T / (n * w * (exact[0][0] @ exact[0][0])) * 0.3
    expected /= 1 - 1 / n if scorer is LeaveOneOut else 1
    found = scorer(0.0, weights).fit([features(X, Z, q, q * (1 - q))]).rows(0, 3)
    # The part of the matrix that is not zero has condition number 1.
    bound = single_precision(np.ones((1, 1)), k, n) * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


@pytest.mark.parametrize(("n", "k"), [(200, 40), (40, 200)])
def test_without_regularization_small_eigenvalues_of_features_in_single_precision_count(n, k, features, rng):
    X, Z = (rng.standard_normal((rows, k)) * np.geomspace(1, 1e-5, k) for rows in (n, 3))
    exact = [A.astype(np.float32).astype(np.float64) for A in (X, Z)]
    expected = (
        exact[1] @ np.linalg.pinv(exact[0]) if n < k else exact[1] @ np.linalg.solve(exact[0].T @ exact[0], exact[0].T)
    )
    found = Trak(0.0, "none").fit([features(X.astype(np.float32), Z.astype(np.float32), np.ones(n))]).rows(0, 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_a_lambda_below_the_rounding_of_single_precision_is_warned_of(features, rng):
    X = np.repeat(rng.standard_normal((1, 5)), 20, axis=0).astype(np.float32)
    with pytest.warns(IllConditionedWarning, match="condition number"):
        Trak(1e-9, "none").fit([features(X, X[:1], np.ones(20))])


def test_columns_that_arrive_in_pieces_are_ranked_as_at_once(rng):
    scores = rng.integers(-20, 20, (5, 300)).astype(np.float32)
    for which in ("top", "bottom"):
        running = RunningRanking(which, 12)
        for piece in np.split(scores, [1, 8, 150], axis=1):
            running.add(piece)
        expected = rank(scores, which, 12)
        np.testing.assert_array_equal(running.ranking.indices, expected.indices)
        np.testing.assert_array_equal(running.ranking.values, expected.values)


def test_factors_are_kept_and_computed_again_when_features_change(features, rng, tmp_path, monkeypatch):
    X, Z, q, r = problem(rng, 30, 5)

    def scores(X, version):
        fitted = Trak(0.5).fit([features(X, Z, q, r, cache=tmp_path, fingerprint={"version": version})])
        return fitted.rows(0, 3)

    first = scores(X, 1)
    kept = {path.name for path in tmp_path.iterdir()}
    assert len(kept) == 2  # Gram matrix and factor
    with monkeypatch.context() as patched:
        patched.setattr(System, "_factor", None)  # nothing is factorized again
        np.testing.assert_array_equal(scores(X, 1), first)
    other = scores(2 * X, 2)
    assert not np.allclose(other, first)
    assert not kept & {path.name for path in tmp_path.iterdir()}
    damaged = next(tmp_path.glob("factor-*"))
    damaged.write_bytes(b"nothing")
    np.testing.assert_allclose(scores(2 * X, 2), other)


def test_a_calibrated_threshold_is_refused_with_what_to_use_instead():
    with pytest.raises(SettingsError, match="threshold 'calibrate' was removed: give a number t ≥ 0.*top=K"):
        Trak(threshold="calibrate")


@pytest.mark.parametrize("wrong", [{"average": "mean"}, {"normalize": "l2"}, {"threshold": -1}])
def test_settings_that_are_none_are_refused(wrong):
    with pytest.raises(SettingsError, match=f"{next(iter(wrong))} must be"):
        Trak(**wrong)
