"""The linear datamodeling score is a rank correlation of subset sums and outputs."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from trak_lightning.evaluation.lds import bootstrap_mean, lds, spearman


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_it_is_spearmans_correlation_of_sums_and_outputs(rng):
    scores, subsets, outputs = rng.standard_normal((5, 30)), rng.random((20, 30)) < 0.5, rng.standard_normal((20, 5))
    expected = [spearmanr(subsets @ scores[z], outputs[:, z]).statistic for z in range(5)]
    np.testing.assert_allclose(lds(np.array_split(scores, 3), subsets, outputs), expected)


def test_ties_get_their_average_rank(rng):
    predicted, observed = rng.integers(0, 4, (25, 6)), rng.integers(0, 3, (25, 6))
    np.testing.assert_allclose(
        spearman(predicted, observed),
        [spearmanr(*pair).statistic for pair in zip(predicted.T, observed.T, strict=True)],
    )


def test_a_model_that_is_a_sum_over_its_subset_is_predicted_perfectly(rng):
    scores, subsets = rng.standard_normal((3, 30)), rng.random((15, 30)) < 0.5
    np.testing.assert_allclose(lds([scores], subsets, np.exp(subsets @ scores.T)), 1)


def test_constant_outputs_give_nan_and_are_left_out_of_the_mean():
    found = spearman(np.arange(5.0)[:, None].repeat(2, 1), np.stack([np.arange(5.0), np.ones(5)], axis=1))
    assert found[0] == 1
    assert np.isnan(found[1])
    assert bootstrap_mean(found, seed=0) == (1, 1, 1)


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says(rng):
    covered = 0
    for trial in range(200):
        _, low, high = bootstrap_mean(rng.standard_normal(50), seed=trial, resamples=400)
        covered += low <= 0 <= high
    assert 180 <= covered <= 199
