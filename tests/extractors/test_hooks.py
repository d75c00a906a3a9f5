"""What is special to the hooks extractor: it streams, works on frozen models, and refuses what it cannot see."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import UnsupportedModelError
from trak_lightning.extractors.hooks import Hooks
from trak_lightning.extractors.hooks.planner import Planner
from trak_lightning.gradients import ParameterLayout, RowSparseBlock
from trak_lightning.tasks.classification import ImageClassification
from trak_lightning.testing.extractors import autograd_loop, extract
from trak_lightning.testing.memory import peak_allocated_bytes
from trak_lightning.testing.models import Sum


def peak_bytes(layers):
    model = nn.Sequential(*[layer for _ in range(layers) for layer in (nn.Linear(128, 128), nn.Tanh())])
    layout, extractor, x = ParameterLayout.of(model), Hooks(), SampleBatch.of_rows(torch.randn(8, 128), 8)
    extractor.extract(model, Sum(), x, layout, lambda block: None)  # the first batch is rehearsed
    return peak_allocated_bytes(lambda: extractor.extract(model, Sum(), x, layout, lambda block: block.dense()))


def test_memory_does_not_grow_with_the_number_of_layers_gradients():
    one_layers_gradients, activations = 8 * 128 * 128 * 4, 18 * 2 * 8 * 128 * 4
    grown = peak_bytes(20) - peak_bytes(2)
    assert peak_bytes(20) >= one_layers_gradients
    assert grown <= 2 * activations < one_layers_gradients


def test_a_model_whose_parameters_are_all_frozen_by_now_gives_the_same_gradients():
    model, x = (
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double(),
        torch.randn(5, 3).double(),
    )
    layout, expected = ParameterLayout.of(model), autograd_loop(model, Sum(), x, 5)[1]
    model.requires_grad_(False)
    found = {}
    Hooks().extract(
        model, Sum(), SampleBatch.of_rows(x, 5), layout, lambda block: found.__setitem__(block.name, block.dense())
    )
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=1e-14)


def test_embeddings_arrive_as_rows_and_never_as_a_table_a_sample():
    model = nn.Sequential(nn.Embedding(1000, 4), nn.Flatten(), nn.Linear(12, 2))
    kinds = {}
    Hooks().extract(
        model,
        Sum(),
        SampleBatch.of_rows(torch.randint(0, 1000, (2, 3)), 2),
        ParameterLayout.of(model),
        lambda block: kinds.__setitem__(block.name, type(block)),
    )
    assert kinds["0.weight"] is RowSparseBlock


class Borrows(nn.Module):
    """Uses the weight of a layer that it never calls, and that of one that it calls as well."""

    def __init__(self):
        super().__init__()
        self.never, self.also, self.body = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return F.linear(F.linear(self.body(self.also(x)), self.never.weight), self.also.weight).tanh()


class TimeFirst(nn.Module):
    """As many steps as samples may come: sizes do not tell which dimension is which."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 2), nn.LayerNorm(2)

    def forward(self, x):
        return self.norm(self.layer(x.transpose(0, 1)).tanh()).transpose(0, 1)


class Shuffles(nn.Module):
    """What goes into the layer is not in the order of the samples."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x.flip(0)).flip(0).tanh()


class Overwrites(nn.Module):
    """Autograd can do it if the second weight is frozen, and needs no input of that layer then."""

    def __init__(self, frozen=True):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight.requires_grad_(not frozen)

    def forward(self, x):
        hidden = self.first(x)
        out = self.second(hidden)
        return out + hidden.mul_(2)


@dataclass
class Pair:
    left: torch.Tensor
    right: torch.Tensor
    note: str = "a plain dataclass"


class GivesPairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.tensor([1.0, 2.0, 3.0])), nn.Linear(3, 3)

    def forward(self, x):
        return Pair(self.layer(x) * self.scale, x * self.scale)


class TakesPairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.temperature = GivesPairs(), nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        pair = self.inner(x=x)
        return {"logits": (pair.left * pair.right.tanh()) * self.temperature.exp()}


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.first, self.second, self.scale = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.PReLU(7)), GivesPairs()

    def forward(self, x):
        hidden = checkpoint(self.second, self.first(x), use_reentrant=self.reentrant)
        return checkpoint(lambda h: self.scale(h).left.tanh(), hidden, use_reentrant=self.reentrant)


MODELS = {
    "borrowed parameters": Borrows,
    "time first": TimeFirst,
    "an input that is overwritten later": Overwrites,
    "samples in another order": Shuffles,
    "dataclasses between modules, bare parameters around modules": TakesPairs,
    "reentrant checkpointing": lambda: Checkpointed(True),
    "checkpointing": lambda: Checkpointed(False),
    "channels last": lambda: nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 2)).to(
        memory_format=torch.channels_last
    ),
}


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("name", MODELS)
def test_unusual_models_are_exact(name, size):
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    x = torch.randn(size, 7, 3).double()
    if name == "channels last":
        x = torch.randn(size, 3, 5, 5).double().to(memory_format=torch.channels_last)
    found = extract(Hooks(), model, x, size)[1]
    model.reentrant = False  # which the oracle could not do
    for parameter, grad in autograd_loop(model, Sum(), x, size)[1].items():
        assert (found[parameter] - grad).norm() <= 1e-10 * grad.norm(), parameter


def test_a_model_that_autograd_cannot_do_is_refused_with_its_reason():
    with pytest.raises(UnsupportedModelError, match="Overwrites.*modified by an inplace operation"):
        extract(Hooks(), Overwrites(frozen=False).double(), torch.randn(2, 3).double(), 2)


def test_what_the_first_batch_did_not_use_is_exact_in_a_later_one():
    class Switches(nn.Module):
        def __init__(self):
            super().__init__()
            self.usual, self.rare, self.borrowed = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            x = self.usual(x)
            return F.linear(self.rare(x), self.borrowed.weight) if x.shape[1] > 3 else x.tanh()

    torch.manual_seed(0)
    model, extractor = Switches().double(), Hooks()
    for length in (2, 5, 2, 4):
        x = torch.randn(4, length, 3).double()
        found = extract(extractor, model, x, 4)[1]
        for parameter, grad in autograd_loop(model, Sum(), x, 4)[1].items():
            assert (found[parameter] - grad).norm() <= 1e-10 * grad.norm(), (length, parameter)


def test_a_parameter_used_in_one_more_way_in_a_later_batch_is_exact():
    """By no module that is called, so that only the graph tells."""

    class Longer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            hidden = self.layer(x).tanh()
            return self.head(F.linear(hidden, self.layer.weight) if x.shape[1] > 3 else hidden)

    torch.manual_seed(0)
    model, extractor = Longer().double(), Hooks()
    for length in (2, 5, 2):
        x = torch.randn(4, length, 3).double()
        found = extract(extractor, model, x, 4)[1]
        for parameter, grad in autograd_loop(model, Sum(), x, 4)[1].items():
            assert (found[parameter] - grad).norm() <= 1e-10 * grad.norm(), (length, parameter)


def test_a_batch_like_those_before_is_not_rehearsed_again(monkeypatch):
    torch.manual_seed(0)
    model, extractor, rehearsed = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double(), Hooks(), []
    cover = Planner.cover
    monkeypatch.setattr(Planner, "cover", lambda *args: rehearsed.append(args) or cover(*args))
    for size in (4, 4, 7, 2):
        extract(extractor, model, torch.randn(size, 3).double(), size)
    assert len(rehearsed) == 1


def test_samples_that_are_mixed_are_refused_with_the_parameters_they_reach():
    class Centres(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return (self.layer(x) - self.layer(x).mean(0)).tanh()

    with pytest.raises(UnsupportedModelError, match=r"layer\.weight \(off by.*'auto' or 'iterative'.*'!NAME'"):
        extract(Hooks(), Centres().double(), torch.randn(3, 3).double(), 3)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gradients_are_summed_in_float32_and_close_to_exact(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    batch = SampleBatch.of_rows((torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 4])), 3)
    layout, task = ParameterLayout.of(model), ImageClassification()
    exact, rough = {}, {}
    Hooks().extract(model, task, batch, layout, lambda block: exact.__setitem__(block.name, block.dense()))
    with torch.autocast("cpu", dtype):
        Hooks().extract(model, task, batch, layout, lambda block: rough.__setitem__(block.name, block.dense()))
    for name, grad in exact.items():
        assert rough[name].dtype == torch.float32
        assert (rough[name] - grad).norm() < 0.03 * grad.norm(), name
