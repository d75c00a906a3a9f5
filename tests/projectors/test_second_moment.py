"""Gradient entries are scaled by the −1/4th power of their mean square before they are projected."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from trak_lightning import TRAK
from trak_lightning.errors import SettingsError
from trak_lightning.gradients import ParameterLayout
from trak_lightning.projectors.base import Projection
from trak_lightning.projectors.second_moment import DAMPING, SecondMoment
from trak_lightning.tasks.classification import ImageClassification


class Small(nn.Module):
    """A convolution of two groups, an embedding of its own mean, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 2, groups=2)
        self.table = nn.Embedding(5, 6)
        self.linear = nn.Linear(6, 3)

    def forward(self, images):
        row = images[:, 0, 0, 0].abs().clamp(max=4).long()
        return self.linear(self.conv(images).relu().mean((2, 3)) * self.table(row))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def train_set():
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        2 * torch.randn(40, 4, 4, 4, generator=generator), torch.randint(0, 3, (40,), generator=generator)
    )


def gradients(model, data, layout):
    """∇f of every sample by autograd, (n, p)."""
    task, rows = ImageClassification(), []
    for image, label in data:
        f = task.output(model, (image[None], label[None])).sum()
        found = torch.autograd.grad(f, [model.get_parameter(slot.name) for slot in layout])
        rows.append(torch.cat([each.flatten() for each in found]))
    return torch.stack(rows)


def scales(rows, layout):
    """S, from the definition."""
    squares = rows.square().mean(0)
    found = []
    for slot in layout:
        v = squares[slot.offset : slot.offset + slot.numel].view(slot.shape[0], -1, int(np.prod(slot.shape[2:])))
        left = (v.mean((1, 2)) / squares.mean() + DAMPING) ** -0.25
        right = (v.mean((0, 2)) / v.mean() + DAMPING) ** -0.25 if len(slot.shape) > 1 else torch.ones(1)
        found.append((left[:, None, None] * right[:, None]).expand_as(v).flatten())
    return torch.cat(found)


@pytest.mark.parametrize("extractor", ["hooks", "functional"])
def test_features_are_scaled_gradients(model, train_set, tmp_path, extractor):
    projector = {"name": "second_moment", "projector": "identity", "fit_samples": 40}
    trak = TRAK(model, "image_classification", tmp_path, projector=projector, extractor=extractor)
    trak.featurize(train_set)
    rows = gradients(model, train_set, trak.spec.layout)
    expected = rows * scales(rows, trak.spec.layout)
    torch.testing.assert_close(torch.tensor(trak.features()[:]), expected, rtol=1e-4, atol=1e-5)


def test_a_projector_that_was_not_fitted_is_refused(model):
    with pytest.raises(SettingsError, match="second_moment must be fitted before it can project"):
        Projection(SecondMoment(), ParameterLayout.of(model), seed=0, checkpoint="c", device="cpu")


def test_a_projector_that_is_fitted_itself_is_refused():
    with pytest.raises(SettingsError, match="LowRank is fitted to gradients itself"):
        SecondMoment({"name": "lowrank", "init": "pca"})
