"""The default projector chooses k once per run, from the number of training samples and of parameters."""

import logging
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, TensorDataset

from trak_lightning import TRAK
from trak_lightning.errors import IncompatibleRunError, SettingsError
from trak_lightning.projectors import dimensions
from trak_lightning.projectors.auto import Auto
from trak_lightning.projectors.dimensions import FEWEST, MOST, WORK, automatic


@pytest.fixture
def few(monkeypatch):
    """A budget so small that 50 samples × 83 parameters are projected."""
    for name, value in (("FEWEST", 8), ("MOST", 64), ("WORK", 50 * 32**2)):
        monkeypatch.setattr(dimensions, name, value)


def trak(model, folder, projector="auto"):
    return TRAK(model, "image_classification", folder, projector=projector)


def more(count):
    generator = torch.Generator().manual_seed(7)
    return TensorDataset(torch.randn(count, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator))


@pytest.mark.parametrize(
    ("n", "p", "k"),
    [
        (1000, 5000, 5000),
        (1000, 10**6, MOST),
        (4000, 10**6, WORK // 4000**2),
        (10_000, 10**6, 4472),
        (10**6, 10**9, FEWEST),
    ],
)
def test_k_is_what_the_budget_allows_and_never_more_than_p(n, p, k):
    assert automatic(n, p).k == k
    assert k in (p, FEWEST) or n * k * min(n, k) <= WORK


def test_more_samples_never_give_more_dimensions_and_more_parameters_never_fewer():
    ks = [[automatic(n, p).k for p in (100, 10**4, 10**6, 10**9)] for n in (10, 1000, 10**4, 10**5, 10**7)]
    assert all(
        later <= earlier for row, following in pairwise(ks) for earlier, later in zip(row, following, strict=True)
    )
    assert all(sorted(row) == row for row in ks)


def test_a_small_model_is_not_projected(model, train_set, tmp_path):
    run = trak(model, tmp_path)
    run.featurize(train_set)
    assert run.features().shape == (50, 83)


@pytest.mark.usefixtures("few")
def test_resuming_growing_shards_and_targets_keep_k(model, train_set, test_set, checkpoints, tmp_path, monkeypatch):
    trak(model, tmp_path).featurize(train_set, checkpoints[:2], batch_size=8, block_size=8, shard="1/2")
    monkeypatch.setattr(dimensions, "WORK", 50 * 10**2)  # another version has another budget
    trak(model, tmp_path).featurize(train_set, checkpoints[:2], batch_size=8, shard="2/2")
    grown = trak(model, tmp_path)
    grown.featurize(ConcatDataset([train_set, more(200)]), checkpoints, batch_size=8, grow=True)
    grown.score(test_set, "test")
    assert {grown.features(split, m).shape[1] for split in ("train", "test") for m in range(3)} == {32}


@pytest.mark.usefixtures("few")
def test_a_run_that_was_made_by_an_earlier_default_keeps_its_projector(model, train_set, checkpoints, tmp_path):
    trak(model, tmp_path, {"name": "sparse_jl", "dim": 16}).featurize(train_set, checkpoints[:1])
    later = trak(model, tmp_path)
    assert later.featurize(train_set, checkpoints[:1]) == 0
    later.featurize(train_set, checkpoints[:2])
    assert later.features("train", 1).shape == (50, 16)


@pytest.mark.usefixtures("few")
def test_another_k_than_that_of_the_stored_features_is_refused_by_name(model, train_set, tmp_path):
    trak(model, tmp_path).featurize(train_set)
    with pytest.raises(IncompatibleRunError, match="was made with dim = 32, and 16 is asked for"):
        trak(model, tmp_path, {"name": "auto", "dim": 16}).featurize(train_set)


@pytest.mark.usefixtures("few")
def test_the_choice_and_its_reason_are_logged(model, train_set, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    trak(model, tmp_path / "projected").featurize(train_set)
    trak(nn.Linear(6, 3).eval(), tmp_path / "not").featurize(train_set)
    assert (
        "projector  k = 32 of p = 83: what is solved in seconds, 0 MB per checkpoint for n = 50 training samples"
        in caplog.text
    )
    assert "projector  all p = 21 gradient entries are kept, without a projection" in caplog.text


def test_a_dim_that_is_no_number_is_refused():
    with pytest.raises(SettingsError, match="dim must be a number of dimensions, or auto, 1 or more, got 'many'"):
        Auto("many")
