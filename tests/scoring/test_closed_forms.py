"""Scores against problems whose answer is known: linear and logistic regression, and the paper's formula taken literally."""

import numpy as np
import pytest

from trak_lightning.scoring.gradient_scorers import GradientDot
from trak_lightning.scoring.trak import LeaveOneOut, Trak


def matrix(scoring):
    return np.concatenate(list(scoring.blocks(block_bytes=1000)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_linear_regression_equals_retraining_without_each_sample(ridge, features, rng):
    X, Z, y = rng.standard_normal((40, 5)), rng.standard_normal((3, 5)), rng.standard_normal(40)

    def fit(rows):
        return np.linalg.solve(X[rows].T @ X[rows] + ridge * np.eye(5), X[rows].T @ y[rows])

    everything = np.arange(40)
    theta = fit(everything)
    expected = np.stack([Z @ theta - Z @ fit(np.delete(everything, i)) for i in everything], axis=1)
    scorer = LeaveOneOut(regularization=ridge)
    np.testing.assert_allclose(
        matrix(scorer.fit([features(X, Z, q=y - X @ theta, r=np.ones(40))])), expected, rtol=1e-8, atol=1e-12
    )


def test_logistic_regression_equals_one_newton_step_without_each_sample(features, rng):
    ridge, X, Z = 0.5, rng.standard_normal((60, 4)), rng.standard_normal((3, 4))
    y = np.where(X @ [1.0, -2, 0.5, 0] + rng.standard_normal(60) > 0, 1.0, -1)
    theta = np.zeros(4)

    def newton(theta, rows):
        q = sigmoid(-y[rows] * (X[rows] @ theta))
        gradient = X[rows].T @ (y[rows] * q) - ridge * theta
        hessian = (X[rows] * (q * (1 - q))[:, None]).T @ X[rows] + ridge * np.eye(4)
        return theta + np.linalg.solve(hessian, gradient)

    for _ in range(30):
        theta = newton(theta, np.arange(60))
    # The model output of a classifier is the log-odds of its own label, so features carry the label's sign.
    expected = np.stack([Z @ theta - Z @ newton(theta, np.delete(np.arange(60), i)) for i in range(60)], axis=1)
    q = sigmoid(-y * (X @ theta))
    found = matrix(LeaveOneOut(regularization=ridge).fit([features(X * y[:, None], Z, q=q, r=q * (1 - q))]))
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


def test_without_weights_and_regularization_it_is_the_papers_formula(features, rng):
    checkpoints = [(rng.standard_normal((50, 6)), rng.standard_normal((4, 6)), rng.uniform(0, 1, 50)) for _ in range(3)]
    inner = np.mean([Z @ np.linalg.inv(X.T @ X) @ X.T for X, Z, _ in checkpoints], axis=0)
    expected = inner * np.mean([q for *_, q in checkpoints], axis=0)
    sets = [features(X, Z, q=q, checkpoint=str(i)) for i, (X, Z, q) in enumerate(checkpoints)]
    np.testing.assert_allclose(matrix(Trak(0.0, "none").fit(sets)), expected, rtol=1e-6)


@pytest.mark.parametrize("weights", ["none", "residual", "gauss_newton", "fisher"])
@pytest.mark.parametrize("k", [4, 29, 30, 31, 80])
def test_every_weighting_with_fewer_and_with_more_samples_than_dimensions(weights, k, features, rng):
    n, regularization = 30, 0.3
    X, Z, q = rng.standard_normal((n, k)), rng.standard_normal((2, k)), rng.uniform(0, 1, n)
    q[:3] = 1e-9  # samples that are fitted all but perfectly weigh next to nothing
    r = q * (1 - q)
    W = {"none": np.ones(n), "residual": q, "gauss_newton": r, "fisher": q**2}[weights]
    expected = Z @ np.linalg.solve((X * W[:, None]).T @ X + regularization * np.eye(k), X.T) * q
    found = matrix(Trak(regularization, weights).fit([features(X, Z, q=q, r=r)]))
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("k", [10, 50])
def test_without_regularization_duplicated_and_zero_rows_get_the_pseudo_inverse(k, features, rng):
    X = rng.standard_normal((20, k))
    X[5:15] = X[4]
    X[15] = 0
    Z, q = rng.standard_normal((2, k)), np.ones(20)
    expected = Z @ np.linalg.pinv(X.T @ X, rcond=1e-12, hermitian=True) @ X.T
    np.testing.assert_allclose(matrix(Trak(0.0, "none").fit([features(X, Z, q=q)])), expected, atol=1e-8)


def test_one_dimension_and_one_target(features):
    X, Z = np.array([[1.0], [2.0]]), np.array([[3.0]])
    np.testing.assert_allclose(matrix(Trak(1.0, "none").fit([features(X, Z, q=[1, 0.5])])), [[3 / 6, 3 / 6]])


def test_gradient_dot_is_the_inner_product_times_the_loss_weight(features, rng):
    X, Z, q = rng.standard_normal((9, 4)), rng.standard_normal((2, 4)), rng.uniform(0, 1, 9)
    np.testing.assert_allclose(matrix(GradientDot().fit([features(X, Z, q=q)])), Z @ X.T * q)


@pytest.mark.parametrize("block_size", [1, 4, 100])
def test_scores_do_not_depend_on_the_size_of_blocks(block_size, features, rng):
    X, Z, q = rng.standard_normal((30, 8)), rng.standard_normal((5, 8)), rng.uniform(0, 1, 30)
    expected = matrix(Trak().fit([features(X, Z, q=q)]))
    found = matrix(Trak().fit([features(X, Z, q=q, block_size=block_size)]))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)
