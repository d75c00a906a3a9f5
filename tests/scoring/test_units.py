"""Scores of a regression have the unit of its labels, and their quality does not depend on it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from trak_lightning import TRAK


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 5, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(5, generator=generator, dtype=torch.float64) + torch.randn(80, generator=generator).double()
    halves = [torch.randperm(80, generator=generator)[:40] for _ in range(6)]
    return x, y, halves


def attributed(problem, unit, folder):
    """Six linear networks that were fitted to halves."""
    x, y, halves = problem
    model = nn.Linear(5, 1, bias=False).double()
    weights = [{"weight": unit * torch.linalg.lstsq(x[half], y[half, None]).solution.T} for half in halves]
    trak = TRAK(model, "regression", folder, projector="identity", store={"name": "hdf5", "dtype": "float64"})
    trak.featurize(TensorDataset(x[:, :], unit * y), weights, subsets=[half.tolist() for half in halves])
    trak.featurize_targets(TensorDataset(x[:10], unit * y[:10]), "test")
    return trak


@pytest.fixture(scope="module")
def units(problem, tmp_path_factory):
    """The same labels in two units."""
    return [attributed(problem, unit, tmp_path_factory.mktemp("unit")) for unit in (1.0, 100.0)]


def scored(problem, unit, trak, **scorer):
    x, y, _ = problem
    targets = TensorDataset(x[:10], unit * y[:10])
    return trak.score(targets, name="test", scorer={"name": "trak", **scorer})


@pytest.mark.parametrize("weights", ["auto", "none", "fisher", "gauss_newton"])
def test_scores_and_self_influence_have_the_unit_of_the_labels(weights, problem, units):
    one, other = units
    scores, hundred = (
        scored(problem, unit, trak, weights=weights) for unit, trak in zip((1.0, 100.0), units, strict=True)
    )
    assert hundred.settings["scoring"]["rule"] == scores.settings["scoring"]["rule"]  # the same λ/trace
    np.testing.assert_allclose(hundred.values, 100 * np.asarray(scores.values), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        other.self_influence(weights=weights).self_influence,
        100 * one.self_influence(weights=weights).self_influence,
        rtol=1e-6,
    )


def test_scores_of_a_regression_have_the_size_of_the_effect_of_leaving_samples_out(problem, units):
    x, y, _ = problem
    scores = scored(problem, 100.0, units[1], regularization=1e-9)
    whole = torch.linalg.lstsq(x, y[:, None]).solution
    effects = [
        100 * (x[:10] @ (whole - torch.linalg.lstsq(x[rest], y[rest, None]).solution))[:, 0]
        for rest in ([*range(i), *range(i + 1, 80)] for i in range(80))
    ]
    found, effect = np.asarray(scores.values).T, torch.stack(effects).numpy()
    assert np.polyfit(found.ravel(), effect.ravel(), 1)[0] == pytest.approx(1, abs=0.4)
    assert np.corrcoef(found.ravel(), effect.ravel())[0, 1] > 0.9
