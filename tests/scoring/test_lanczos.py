"""Quadratic forms without a decomposition."""

import numpy as np
import pytest

from trak_lightning.scoring.lanczos import quadrature


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 2, 30])
def test_as_many_steps_as_dimensions_are_exact(size, dtype):
    rng = np.random.default_rng(0)
    root, vectors = rng.standard_normal((size, size)), rng.standard_normal((size, 3))
    matrix = root @ root.T
    nodes, weights = quadrature(np.tril(matrix).astype(dtype), vectors, size)
    for shift in (10.0, 1.0):
        expected = np.einsum("kb,kb->b", vectors, np.linalg.solve(matrix + shift * np.eye(size), vectors))
        np.testing.assert_allclose(
            (weights / (nodes + shift)).sum(1), expected, rtol=1e-3 if dtype == np.float32 else 1e-6
        )


def test_few_steps_are_enough_for_a_matrix_of_a_thousand_dimensions():
    rng = np.random.default_rng(0)
    values = np.geomspace(100, 1e-4, 1000)
    basis = np.linalg.qr(rng.standard_normal((1000, 1000)))[0]
    matrix, vectors = (basis * values) @ basis.T, rng.standard_normal((1000, 4))
    nodes, weights = quadrature(np.tril(matrix), vectors, 64)
    for shift in values.sum() / np.array([100.0, 1000.0, 10_000.0]):
        expected = (((basis.T @ vectors) ** 2) / (values + shift)[:, None]).sum(0)
        np.testing.assert_allclose((weights / (nodes + shift)).sum(1), expected, rtol=1e-3)


def test_a_vector_of_zeros_and_one_that_is_an_eigenvector_are_no_trouble():
    matrix, vectors = np.diag([1.0, 2.0, 3.0]), np.array([[0.0, 0.0], [0.0, 5.0], [0.0, 0.0]])
    nodes, weights = quadrature(matrix, vectors, 3)
    np.testing.assert_allclose((weights / (nodes + 1)).sum(1), [0, 25 / 3])
