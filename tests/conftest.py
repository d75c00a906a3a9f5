"""A small trained problem that runs in a second, and a job that real processes run."""

import os

import pytest
import torch
from faults import Job, rows
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


@pytest.fixture(scope="session")
def job(tmp_path_factory):
    os.environ["OMP_NUM_THREADS"] = "1"
    return Job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="session")
def whole(job, tmp_path_factory):
    """The rows of an uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    code, output = job.finish(run_dir)
    assert code == 0, output
    return rows(run_dir)
