"""What a plan of the hooks extractor runs again, and how many samples the model sees until there is one."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.extractors.hooks import Hooks, tape
from trak_lightning.testing.extractors import autograd_loop, extract, gradients
from trak_lightning.testing.models import Sum

LENGTH = 5


class Attends(nn.Module):
    """Attention to relative positions, as in DeBERTa: repeats what all samples share once per sample."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.position = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x, table):
        query, shared = self.query(x), self.position(table.unsqueeze(0)).repeat(len(x), 1, 1)
        scores = torch.bmm(query, self.key(x).mT) + torch.bmm(query, shared.mT)[..., :LENGTH]
        return torch.bmm(scores.softmax(-1), self.value(x))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.dense = Attends(), nn.Linear(4, 4)

    def forward(self, x, table):
        return x + self.dense(self.attention(x, table)).tanh()


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions, self.norm = nn.Embedding(6, 4), nn.LayerNorm(4)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        table = self.norm(self.positions.weight)
        for block in self.blocks:
            x = block(x, table)
        return x


class RelativePositions(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.words, self.encoder, self.head = nn.Embedding(vocabulary, 4), Encoder(), nn.Linear(4, 2)

    def forward(self, ids):
        return self.head(self.encoder(self.words(ids)))


@contextmanager
def counted(model):
    """The numbers of samples of all passes through the whole model."""
    seen = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    yield seen
    handle.remove()


@pytest.fixture
def reruns(monkeypatch):
    """The modules that are re-run, and those inside whose outputs are replayed."""
    found, run = [], tape.rerun_gradients

    def record(name, module, names, call, *rest, **options):
        paths = {inside: path for path, inside in module.named_modules()}
        found.append((name, [paths[inner.module] for inner in call.inner]))
        return run(name, module, names, call, *rest, **options)

    monkeypatch.setattr(tape, "rerun_gradients", record)
    return found


def planned(vocabulary, size):
    torch.manual_seed(0)
    model, ids = RelativePositions(vocabulary).double(), torch.randint(0, vocabulary, (size, LENGTH))
    return model, ids


@pytest.mark.parametrize("vocabulary", [3, 1000])
@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_gradients_through_a_table_that_all_samples_share_are_exact(vocabulary, size):
    model, ids = planned(vocabulary, size)
    found, expected = extract(Hooks(), model, ids, size)[1], autograd_loop(model, Sum(), ids, size)[1]
    for parameter, grad in expected.items():
        assert (found[parameter] - grad).norm() <= 1e-10 * grad.norm() + 1e-15, parameter


def test_a_module_is_re_run_once_and_the_layers_inside_it_are_replayed(reruns):
    model, ids = planned(1000, 16)
    extract(Hooks(), model, ids, 16)
    names = ["attention.query", "attention.key", "attention.value", "dense"]
    inside = [f"blocks.{block}.{name}" for block in range(2) for name in names]
    assert {name for name, _ in reruns} == {"encoder"}
    assert all(sorted(inner) == sorted(inside) for _, inner in reruns)


def test_modules_are_re_run_apart_where_their_gradients_together_are_larger_than_any_parameter(reruns):
    model, ids = planned(3, 16)
    extract(Hooks(), model, ids, 16)
    assert {name for name, _ in reruns} == {"encoder", "encoder.blocks.0.attention", "encoder.blocks.1.attention"}


def test_what_two_samples_show_takes_no_pass_of_the_whole_batch():
    """Passes of all 16: two halves, the rehearsal, and the one whose blocks count. All others are of two or three samples."""
    model, ids = planned(1000, 16)
    with counted(model.float()) as seen:
        extract(Hooks(), model, ids, 16)
    assert sorted(size for size in seen if size > 3) == [8, 8, 16, 16]


def test_how_often_a_task_cuts_its_batch_does_not_ask_for_a_pass_of_all_samples():
    class InParts(Sum):
        def output(self, model, batch):
            parts = [(part.flatten(1) ** 2).sum(1) for part in model(batch).split(4)]
            return torch.cat(parts)

    model, ids = planned(1000, 16)
    with counted(model.float()) as seen:
        gradients(Hooks(), model, InParts(), SampleBatch.of_rows(ids, 16))
    assert sorted(size for size in seen if size > 3) == [8, 8, 16, 16]
