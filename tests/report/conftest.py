"""Small scored runs of every kind of sample."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).parent))  # for `hostile`; test modules are imported by path

from hostile import FORMS, Margin, Names, Rows

from trak_lightning import TRAK
from trak_lightning.report import write_report


@pytest.fixture
def no_figures(monkeypatch):
    """Leaves out the figures of the section on trust: they take longer to draw than all else does."""
    monkeypatch.setattr("trak_lightning.report.trust.inline_svg", lambda *_, **__: "")


@pytest.fixture(params=list(FORMS))
def form(request):
    return request.param


@pytest.fixture
def make(no_figures, scored_page):
    """As `scored_page`, without figures of eigenvalues."""
    return scored_page


@pytest.fixture
def scored_page(tmp_path):
    """Featurize, score and write the page of one kind of samples; returns its path."""

    def run(form, *, data=Rows, **options):
        torch.manual_seed(0)
        model = nn.Linear(6, 3).eval()
        train, targets = data(form, 40, 1), data(form, 12, 2)
        trak = TRAK(model, task=Margin(), run_dir=tmp_path / "run", projector={"name": "sparse_jl", "dim": 16})
        states = [{name: tensor * scale for name, tensor in model.state_dict().items()} for scale in (1.0, 0.5)]
        files = []
        for number, state in enumerate(states):
            files.append(tmp_path / f"{number}.pt")
            torch.save(state, files[-1])
        trak.featurize(train, files)
        trak.score(targets, name="test")
        options = {"model": model, "task": Margin(), "datamodule": Names(), **options}
        return write_report(tmp_path / "run", train, targets, num_targets=6, **options)

    return run


@pytest.fixture
def twins():
    """The first two training images are equal, with different labels, and so is the first target."""
    images = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    images[1] = images[0]
    return TensorDataset(images, torch.arange(40) % 3), TensorDataset(images[:5].clone(), torch.arange(5) % 3)
