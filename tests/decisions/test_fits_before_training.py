"""A model that is right on its training samples before it is trained is noticed."""

import re

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from trak_lightning.data.dataset import AttributionData
from trak_lightning.decisions import predictions
from trak_lightning.decisions.predictions import fits_before_training
from trak_lightning.tasks.classification import ImageClassification
from trak_lightning.tasks.regression import Regression

X = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
LABELS = X.argmax(1)


class Scaled(nn.Module):
    """p(label) rises with the scale, from 1/3."""

    def __init__(self, scale, bias=(0.0, 0.0, 0.0)):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.tensor(scale)), nn.Parameter(torch.tensor(bias))

    def forward(self, x):
        return self.scale * x + self.bias


def fits(model, labels=LABELS, task=None):
    data = AttributionData.of(TensorDataset(X, labels), 64)
    return fits_before_training(model.eval(), task or ImageClassification(), data)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 8.0, 30.0])
def test_the_share_of_the_label_decides(scale):
    every = torch.softmax(scale * X, 1)[torch.arange(400), LABELS]
    mean = sum(every[label == LABELS].mean() for label in range(3)) / 3
    found = fits(Scaled(scale))
    assert (found is not None) == (mean > 0.9)
    if found:
        shown, count = re.search(r"p\(label\) is (.*) on average over (\d+) of them", found).groups()
        assert (abs(float(shown) - mean) < 0.03, count) == (True, "256")


def test_a_model_that_knows_only_how_frequent_classes_are_does_not_fit():
    rare = torch.where(torch.arange(400) % 40 == 0, 1, 0)
    assert torch.softmax(torch.tensor([5.0, 1.0, 0.0]), 0)[0] > 0.95  # of 39 in 40 labels
    assert fits(Scaled(0.0, (5.0, 1.0, 0.0)), rare) is None
    assert fits(Scaled(0.0, (5.0, 1.0, 0.0)), torch.zeros(400).long()) is None  # no two classes


def test_nothing_is_said_of_tasks_without_classes_and_of_models_that_cannot_be_called_yet():
    class Unbuilt(Scaled):
        def forward(self, x):
            raise RuntimeError("configure_model builds it")

    assert fits(Scaled(30.0), X, Regression()) is None
    assert fits(Unbuilt(30.0)) is None


def test_it_ends_after_a_few_seconds_and_leaves_large_models_out(monkeypatch):
    monkeypatch.setattr(predictions, "SECONDS", 0.0)
    assert "over 64 of them" in fits(Scaled(30.0))
    monkeypatch.setattr(predictions, "LARGEST", 3)
    assert fits(Scaled(30.0)) is None
