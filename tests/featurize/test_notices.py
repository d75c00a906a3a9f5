"""What is noticed about a run is said by the command that computes rows, once."""

import logging
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from trak_lightning import TRAK
from trak_lightning.tasks.criterion import CriterionWarning

NOTICES = ("one sample at a time where hooks fail", "of sample 1 are exactly 0", "projector  ")


class OneByOne(nn.Module):
    """Hooks refuse it: its layer is used without being called."""

    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(2, 4, 1)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=255)

    def forward(self, x):
        rows = [nn.functional.conv2d(each[None], self.net.weight) for each in x if each.sum().item() > -1e9]
        return torch.cat(rows) + self.net.bias[:, None, None]


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (6, 4, 4), generator=generator)
    labels[1] = 255
    model = OneByOne().eval()
    weights = [{name: value + k for name, value in model.state_dict().items()} for k in range(2)]
    return weights, TensorDataset(torch.randn(6, 2, 4, 4, generator=generator), labels)


def said_by(weights, data, run_dir, caplog):
    """What a new process says that featurizes `data`: the rows that it computes, and how often it says each notice."""
    caplog.clear()
    caplog.set_level(logging.INFO)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CriterionWarning)
        trak = TRAK(OneByOne().eval(), {"name": "segmentation", "ignore_index": 255}, run_dir)
        computed = trak.featurize(data, weights)
    return computed, [caplog.text.count(each) for each in NOTICES], len(caught)


def test_a_notice_is_said_once_and_not_again_where_nothing_is_computed(problem, tmp_path, caplog):
    weights, data = problem
    assert said_by(weights, data, tmp_path / "run", caplog) == (12, [1, 1, 1], 1)
    assert said_by(weights, data, tmp_path / "run", caplog) == (0, [0, 0, 0], 0)
    assert said_by(weights, data, tmp_path / "other", caplog) == (12, [1, 1, 1], 1)
