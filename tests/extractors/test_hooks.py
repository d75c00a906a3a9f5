"""What is special to the hooks extractor: it streams, works on frozen models, and refuses what it cannot see."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trak_lightning.errors import UnsupportedModelError
from trak_lightning.extractors.hooks import Hooks
from trak_lightning.gradients import ParameterLayout, RowSparseBlock
from trak_lightning.tasks.classification import ImageClassification
from trak_lightning.testing.extractors import autograd_loop, extract
from trak_lightning.testing.models import Sum


def test_only_one_layers_gradients_are_alive_at_a_time():
    model = nn.Sequential(*[layer for _ in range(20) for layer in (nn.Linear(8, 8), nn.Tanh())])
    layout, extractor, x = ParameterLayout.of(model), Hooks(), torch.randn(4, 8)
    extractor.extract(model, Sum(), x, layout, lambda block: None)  # the first batch is compared with autograd
    alive, most = weakref.WeakSet(), 0

    def sink(block):
        nonlocal most
        alive.add(block.dense())
        gc.collect()
        most = max(most, len(alive))

    extractor.extract(model, Sum(), x, layout, sink)
    assert most <= 2


def test_a_model_whose_parameters_are_all_frozen_by_now_gives_the_same_gradients():
    model, x = (
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double(),
        torch.randn(5, 3).double(),
    )
    layout, expected = ParameterLayout.of(model), autograd_loop(model, Sum(), x, 5)[1]
    model.requires_grad_(False)
    found = {}
    Hooks().extract(model, Sum(), x, layout, lambda block: found.__setitem__(block.name, block.dense()))
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=1e-14)


def test_embeddings_arrive_as_rows_and_never_as_a_table_a_sample():
    model = nn.Sequential(nn.Embedding(1000, 4), nn.Flatten(), nn.Linear(12, 2))
    kinds = {}
    Hooks().extract(
        model,
        Sum(),
        torch.randint(0, 1000, (2, 3)),
        ParameterLayout.of(model),
        lambda block: kinds.__setitem__(block.name, type(block)),
    )
    assert kinds["0.weight"] is RowSparseBlock


def test_a_parameter_used_behind_its_modules_back_is_refused_by_name():
    class Sneaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.body = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return F.linear(self.body(x), self.used.weight)

    with pytest.raises(UnsupportedModelError, match=r"used\.weight \(not seen\).*'functional' or 'iterative'"):
        extract(Hooks(), Sneaky().double(), torch.randn(2, 3).double(), 2)


def test_a_layer_whose_first_dimension_is_not_the_batch_is_refused_by_name():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x.transpose(0, 1)).transpose(0, 1)

    with pytest.raises(UnsupportedModelError, match=r"layer\.weight.*first dimension is not the batch \(2 samples\)"):
        extract(Hooks(), TimeFirst().double(), torch.randn(2, 5, 3).double(), 2)


def test_an_input_that_is_changed_in_place_later_is_refused_by_name():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            hidden = self.first(x)
            out = self.second(hidden)
            hidden.mul_(2)
            return out

    with pytest.raises(UnsupportedModelError, match="input of module 'second' is changed in place"):
        extract(Hooks(), Overwrites().double(), torch.randn(2, 3).double(), 2)


def test_an_output_without_a_graph_is_refused():
    class Detached(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(UnsupportedModelError, match="does not depend on any parameter"):
        extract(
            Hooks(),
            nn.Sequential(nn.Linear(3, 3), nn.Flatten(), nn.Sequential(Detached(3, 2))).double(),
            torch.randn(2, 3).double(),
            2,
        )


def test_autocast_gradients_are_summed_in_float32_and_close_to_exact():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    batch = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 4])
    layout, task = ParameterLayout.of(model), ImageClassification()
    exact, rough = {}, {}
    Hooks().extract(model, task, batch, layout, lambda block: exact.__setitem__(block.name, block.dense()))
    with torch.autocast("cpu", torch.bfloat16):
        Hooks().extract(model, task, batch, layout, lambda block: rough.__setitem__(block.name, block.dense()))
    for name, grad in exact.items():
        assert rough[name].dtype == torch.float32
        assert (rough[name] - grad).norm() < 0.03 * grad.norm(), name
