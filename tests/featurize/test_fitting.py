"""A projector that learns from the training set learns once per checkpoint, and the run directory keeps what it learned."""

import numpy as np
import pytest
import torch

from trak_lightning import TRAK
from trak_lightning.errors import CorruptFileError, IncompatibleRunError, IncompleteRunError, SettingsError
from trak_lightning.gradients import DenseBlock, ParameterLayout
from trak_lightning.projectors import Projection
from trak_lightning.projectors.principal import PrincipalDirections
from trak_lightning.projectors.two_sided import LowRank

PCA = {"name": "lowrank", "rank": 3, "init": "pca", "fit_samples": 20}


def attribute(model, run_dir, projector=PCA):
    return TRAK(model, task="image_classification", run_dir=run_dir, projector=projector)


def features(run_dir):
    return {path.relative_to(run_dir): path.read_bytes() for path in sorted((run_dir / "features").rglob("*.h5"))}


def test_a_resumed_run_projects_with_what_was_learned_before(model, train_set, test_set, checkpoints, tmp_path):
    for name in ("whole", "broken"):
        trak = attribute(model, tmp_path / name)
        trak.featurize(train_set, checkpoints, batch_size=8, block_size=8)
        trak.score(test_set, name="test")
    before = features(tmp_path / "whole")
    for block in (tmp_path / "broken" / "features").rglob("block-0000[0135].h5"):
        block.unlink()
    # A fit to other samples would not give the same rows.
    trak = attribute(model, tmp_path / "broken")
    assert trak.featurize(train_set, checkpoints, batch_size=8) > 0
    trak.score(test_set, name="test")
    assert features(tmp_path / "broken") == before


def test_rows_are_never_projected_by_two_fits(model, train_set, checkpoints, tmp_path):
    attribute(model, tmp_path).featurize(train_set, checkpoints[:1])
    (path,) = (tmp_path / "projections").iterdir()
    path.unlink()
    next((tmp_path / "features").rglob("*.h5")).unlink()
    attribute(model, tmp_path).featurize(train_set, checkpoints[:1])  # nothing is left that the old fit has projected
    path.unlink()
    with pytest.raises(IncompleteRunError, match=r"npz is missing, but stored features of 'train' were made with it"):
        attribute(model, tmp_path).featurize(train_set, checkpoints[:1], split="again")


def test_a_fit_made_otherwise_or_damaged_is_refused(model, train_set, checkpoints, tmp_path):
    attribute(model, tmp_path).featurize(train_set, checkpoints[:1])
    with pytest.raises(IncompatibleRunError, match=r"npz was made with projector\.rank = 3, and 4 is asked for"):
        attribute(model, tmp_path, {**PCA, "rank": 4}).featurize(train_set, checkpoints[:1], split="again")
    (path,) = (tmp_path / "projections").iterdir()
    path.write_bytes(b"no zip")
    with pytest.raises(CorruptFileError, match=r"npz cannot be read as NumPy arrays .*features made with it"):
        attribute(model, tmp_path).featurize(train_set, checkpoints[:1], split="third")


def test_pca_keeps_all_of_a_gradient_that_has_low_rank():
    layout = ParameterLayout.of(torch.nn.Linear(40, 30, bias=False))
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, 3, generator=generator) for size in (30, 40))
    gradients = left @ torch.randn(50, 3, 3, generator=generator) @ right.T
    projector = LowRank(3, "pca")
    fitted = projector.fit(layout, lambda sink: sink(DenseBlock("weight", gradients)), seed=0)
    projection = Projection(projector, layout, seed=0, checkpoint="", device="cpu", fitted=fitted)
    found = projection.zeros(50)
    projection.add(DenseBlock("weight", gradients), found)
    torch.testing.assert_close(found @ found.T, gradients.flatten(1) @ gradients.flatten(1).T, rtol=1e-3, atol=1e-2)


def test_principal_directions_are_the_leading_eigenvectors():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(60, 60, generator=generator)).Q
    matrices = basis * torch.logspace(0, -6, 60)
    directions = PrincipalDirections(60, 4, seed=1)
    directions.add(matrices[None])
    found = directions.leading()
    torch.testing.assert_close((basis[:, :4].T @ found).abs(), torch.eye(4), rtol=0, atol=2e-3)


def test_directions_without_any_gradient_are_still_orthonormal():
    found = PrincipalDirections(30, 4, seed=1).leading()
    torch.testing.assert_close(found.T @ found, torch.eye(4))


def test_an_unfitted_projector_says_so():
    layout = ParameterLayout.of(torch.nn.Linear(40, 30))
    with pytest.raises(SettingsError, match="must be fitted before it can project"):
        Projection(LowRank(3, "pca"), layout, seed=0, checkpoint="", device="cpu")


def test_targets_are_projected_with_what_was_learned_from_the_training_set(model, train_set, checkpoints, tmp_path):
    trak = attribute(model, tmp_path)
    trak.featurize(train_set, checkpoints)
    trak.score(train_set, name="same")
    for checkpoint in trak.run.read().checkpoints:
        train, targets = (trak.store.open(split, checkpoint.id) for split in ("train", "same"))
        np.testing.assert_array_equal(train.read_block(0).features, targets.read_block(0).features)
