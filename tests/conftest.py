"""A small trained problem that runs in a second."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).eval()


@pytest.fixture
def train_set():
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(50, 6, generator=generator), torch.randint(0, 3, (50,), generator=generator))


@pytest.fixture
def test_set():
    generator = torch.Generator().manual_seed(2)
    return TensorDataset(torch.randn(9, 6, generator=generator), torch.randint(0, 3, (9,), generator=generator))


@pytest.fixture
def checkpoints(model):
    torch.manual_seed(3)
    return [
        {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()} for _ in range(3)
    ]
