"""The predicted linear datamodeling score is the one that models on other halves give."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from trak_lightning import TRAK, Scores
from trak_lightning.evaluation.lds import lds
from trak_lightning.scoring.lds_in_words import in_words
from trak_lightning.scoring.predicted_lds import Trust

N, RIDGE, NOISE = 80, 20.0, 0.3


@pytest.fixture(scope="module")
def problem():
    generator = np.random.default_rng(0)
    x, z = generator.standard_normal((N, 30)), generator.standard_normal((40, 30))
    return x, x @ generator.standard_normal(30) + 3 * generator.standard_normal(N), z


def half(seed):
    return np.sort(np.random.default_rng(seed).permutation(N)[: N // 2])


def refitted(problem, seed):
    """A ridge regression on a random half, with some noise of training."""
    x, y, _ = problem
    rows = half(seed)
    theta = np.linalg.solve(x[rows].T @ x[rows] + RIDGE * np.eye(30), x[rows].T @ y[rows])
    return theta + NOISE * np.random.default_rng([seed, 1]).standard_normal(30)


def scored(problem, folder, checkpoints, subsets=True, scorer="trak"):
    x, y, z = problem
    trak = TRAK(nn.Linear(30, 1, bias=False).eval(), "regression", folder, projector="identity")
    states = [
        {"weight": torch.tensor(refitted(problem, seed)[None], dtype=torch.float32)} for seed in range(checkpoints)
    ]
    train, targets = (
        TensorDataset(*(torch.tensor(each, dtype=torch.float32) for each in pair)) for pair in ((x, y), (z, z[:, 0]))
    )
    trak.featurize(train, states, subsets=[half(seed) for seed in range(checkpoints)] if subsets else None)
    return trak.score(targets, "test", scorer=scorer)


@pytest.mark.parametrize("checkpoints", [8, 16])
def test_the_prediction_agrees_with_retraining(checkpoints, problem, tmp_path):
    # With the curvature of the squared loss, the matrices of all checkpoints of a linear model are the same.
    scores = scored(problem, tmp_path, checkpoints, scorer={"name": "trak", "weights": "residual"})
    seeds = range(1000, 1300)
    subsets = np.stack([np.isin(np.arange(N), half(seed)) for seed in seeds])
    outputs = np.stack([problem[2] @ refitted(problem, seed) for seed in seeds])
    measured = float(np.nanmean(lds([np.asarray(scores.values)], subsets, outputs)))
    assert measured > 0.2
    assert scores.trust["lds"] == pytest.approx(measured, abs=0.1)
    assert scores.trust["low"] <= measured <= scores.trust["high"]
    assert scores.trust["gain"] > 0


def test_the_sentence_is_stored_with_the_scores(problem, tmp_path):
    scores = scored(problem, tmp_path, 5)
    assert Scores(scores.path).trust == scores.trust
    assert repr(scores).endswith(f"\ntrust {scores.trust['sentence']}")
    assert "predict retrained models with a rank correlation (LDS) of about" in scores.trust["sentence"]


@pytest.mark.parametrize(
    ("low", "high", "promised"),
    [
        (0.2, 0.4, True),
        (0.02, 0.14, True),
        (-0.35, 0.59, False),
        (-0.05, 0.25, False),
        (0.2, 0.7, True),
        (0.1, 0.6, False),
        (0.01, 0.04, False),
    ],
)
def test_a_gain_is_promised_only_where_the_score_is_known_and_not_very_weak(low, high, promised):
    trust = Trust((low + high) / 2, low, high, 0.03, 5)
    assert trust.sentence.endswith("; 3 more checkpoints would bring about 0.03") == promised
    assert trust.sentence.endswith(f"[{low:.2f}, {high:.2f}]") != promised
    assert Trust((low + high) / 2, low, high, 0.004, 5).sentence.endswith(f"[{low:.2f}, {high:.2f}]")


@pytest.mark.parametrize(("checkpoints", "more"), [(4, 4), (8, 8), (10, 10)])
def test_a_score_that_may_be_anything_is_not_told(checkpoints, more):
    assert Trust(0.22, -0.53, 0.51, 0.03, checkpoints).sentence == (
        "not known yet: the rank correlation with retrained models (LDS) is anywhere in [-0.53, 0.51]; "
        f"about {more} more checkpoints would narrow this"
    )


def test_without_recorded_subsets_nothing_is_claimed(problem, tmp_path):
    unknown, few = scored(problem, tmp_path / "unknown", 5, subsets=False), scored(problem, tmp_path / "few", 3)
    assert unknown.trust is few.trust is None
    assert unknown.trust_unknown == (
        "unknown: needs 4 checkpoints trained on recorded parts of the data, has 0 "
        '(page evaluation of the documentation, under "Models that you train yourself")'
    )
    assert repr(unknown).endswith(f"\ntrust {unknown.trust_unknown}")
    assert few.trust_unknown == "unknown: needs 4 checkpoints, has 3; train more: --ensemble.size 4"


@pytest.mark.parametrize(
    ("lds", "low", "high", "word"),
    [
        (0.37, 0.31, 0.44, "good"),
        (0.43, 0.263, 0.597, "good"),
        (0.33, 0.13, 0.53, "uncertain"),
        (0.08, 0.02, 0.14, "weak"),
        (1.0, 1.0, 1.0 + 1e-9, "very good"),
        (0.37, -0.01, 0.75, "uncertain"),
        (0.37, -0.21, 0.96, "not known yet"),
        (0.22, -1.0, 1.0, "not known yet"),
        (0.1, -0.05, 0.25, "not distinguishable from chance"),
        (-0.2, -0.5, 0.1, "not distinguishable from chance"),
    ],
)
def test_a_score_is_called_good_only_if_it_is_known_well(lds, low, high, word):
    assert in_words(lds, low, high) == word
