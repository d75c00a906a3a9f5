"""The default extractor says what it uses, and finds a way where hooks have none."""

import logging

import pytest
import torch
from torch import nn
from zoo import bert, text_batch

from trak_lightning import TRAK
from trak_lightning.data.samples import SampleBatch
from trak_lightning.extractors import auto, iterative
from trak_lightning.extractors.audit import reference
from trak_lightning.extractors.auto import Auto
from trak_lightning.extractors.hooks import planner
from trak_lightning.extractors.hooks.planner import Planner
from trak_lightning.gradients import ParameterLayout
from trak_lightning.tasks.loss import Loss
from trak_lightning.testing.extractors import autograd_loop, extract, gradients
from trak_lightning.testing.models import Sum


def test_it_is_the_default_and_says_in_one_line_which_layers_use_which_rule(model, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert isinstance(TRAK(model, "image_classification", tmp_path).spec.extractor, Auto)
    extract(
        Auto(), nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double(), torch.randn(3, 3).double(), 3
    )
    assert [record.getMessage() for record in caplog.records] == ["gradients  hooks: Linear ×2, LayerNorm"]


class Hidden(nn.Module):
    """Calls no module: the task reaches into it."""

    def __init__(self, item):
        super().__init__()
        self.layer, self.item = nn.Linear(3, 2), item

    def forward(self, x):
        raise AssertionError


class Reaches(Sum):
    def output(self, model, batch):
        found = nn.functional.linear(batch, model.layer.weight)
        return (found * found.detach().sum().item() if model.item else found).tanh().sum(1)


def test_where_hooks_have_no_way_it_loops_and_says_why(caplog):
    caplog.set_level(logging.INFO)
    model, x = Hidden(item=False).double(), torch.randn(3, 3).double()
    batch = SampleBatch.of_rows(x, 3)
    found = gradients(Auto(), model, Reaches(), batch)[1]
    expected = autograd_loop(model, Reaches(), batch, 3)[1]["layer.weight"]
    torch.testing.assert_close(found["layer.weight"], expected, rtol=1e-10, atol=0)
    said = caplog.records[0].getMessage()
    assert said.startswith("gradients  one sample at a time")
    assert "parameter layer.weight of Hidden" in said
    assert "(extractor: iterative does so without this line)" in said


def mean_loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def test_a_loss_of_the_whole_batch_is_told_once_though_hooks_can_do_batches_of_one(caplog):
    caplog.set_level(logging.INFO)
    model, extractor = nn.Linear(3, 2).double(), Auto()
    for size in (100, 100, 1, 2, 1, 2):
        batch = SampleBatch.of_rows((torch.randn(size, 3).double(), torch.zeros(size).long()), size)
        gradients(extractor, model, Loss(mean_loss), batch)
        assert extractor.one_by_one
    (said,) = (record.getMessage() for record in caplog.records)
    assert "one number for a batch of 100 samples" in said


class Picky(nn.Module):
    """Chooses samples by their values, which vmap cannot follow."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        chosen = torch.where(x.sum(1) > 0)[0]
        return x.index_add(0, chosen, x[chosen] @ self.weight)


def test_a_model_that_hooks_can_only_re_run_sample_by_sample_is_left_to_the_loop():
    model, extractor = Picky().double(), Auto()
    first, second = (SampleBatch.of_rows(torch.randn(4, 3).double(), 4) for _ in range(2))
    ways = []
    for batch in (first, first, second):
        found = gradients(extractor, model, Sum(), batch)[1]["weight"]
        ways.append(extractor.one_by_one)
        expected = autograd_loop(model, Sum(), batch, 4)[1]["weight"]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    assert ways == [True, True, True]


class Experts(nn.Module):
    """Gives every token to the expert that its largest entry names, in a loop over experts."""

    def __init__(self, selects):
        super().__init__()
        self.experts, self.head, self.selects = (
            nn.ModuleList(nn.Linear(4, 4) for _ in range(4)),
            nn.Linear(4, 3),
            selects,
        )

    def forward(self, x):
        tokens, chosen, out = x.flatten(0, 1), x.flatten(0, 1).argmax(-1), torch.zeros_like(x).flatten(0, 1)
        for number, expert in enumerate(self.experts):
            if self.selects:
                (own,) = torch.where(chosen == number)
                out = out.index_add(0, own, expert(tokens[own])) if len(own) else out
            else:  # and what selects has no parameters
                out = out + expert(tokens) * (chosen == number)[:, None] * torch.where(chosen >= 0)[0].numel() / len(x)
        return self.head(out.view_as(x).mean(1))


@pytest.mark.parametrize("held", [1, 60, 2**20])
@pytest.mark.parametrize("selects", [True, False])
def test_two_samples_show_that_experts_are_faster_one_by_one_before_the_batch_is_differentiated(
    selects, held, monkeypatch
):
    torch.manual_seed(0)
    model, extractor, differentiated = Experts(selects).double(), Auto(), []
    monkeypatch.setattr(iterative, "_HELD", held)
    monkeypatch.setattr(planner, "reference", lambda *args: differentiated.append(0) or reference(*args))
    batch = SampleBatch.of_rows(torch.randn(6, 3, 4).double(), 6)
    found = gradients(extractor, model, Sum(), batch)[1]
    assert extractor.one_by_one == selects
    assert bool(differentiated) != selects
    for name, grad in autograd_loop(model, Sum(), batch, 6)[1].items():
        torch.testing.assert_close(found.get(name, torch.zeros_like(grad)), grad, rtol=1e-10, atol=1e-14)


def test_a_batch_of_one_is_left_to_the_loop_if_its_gradient_may_be_held(monkeypatch):
    model, batch = nn.Linear(3, 2).double(), SampleBatch.of_rows(torch.randn(1, 3).double(), 1)
    for held, alone in ((8, True), (7, False)):
        monkeypatch.setattr(auto, "_HELD", held)
        extractor = Auto()
        found = gradients(extractor, model, Sum(), batch)[1]
        assert extractor.one_by_one == alone
        for name, grad in autograd_loop(model, Sum(), batch, 1)[1].items():
            torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=0)


class Branches(nn.Module):
    """Makes other operations for batches of negative numbers, which it tells from integers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x).tanh() if x.sign().int().add(1).all() else self.layer(x).sigmoid().sin()


def test_a_new_kind_of_small_batch_waits_until_others_have_saved_the_passes_of_a_plan():
    model, extractor, ways = Branches().double(), Auto(), []
    for sign in (1, -1, 1, 1, -1, -1, 1):
        batch = SampleBatch.of_rows(sign * torch.rand(4, 3).double(), 4)
        found = gradients(extractor, model, Sum(), batch)[1]
        ways.append("alone" if extractor.one_by_one else "hooks")
        for name, grad in autograd_loop(model, Sum(), batch, 4)[1].items():
            torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=0)
    assert ways == ["hooks", "alone", "hooks", "hooks", "hooks", "hooks", "hooks"]


def test_a_new_kind_of_large_batch_is_planned_for_at_once():
    model, extractor = Branches().double(), Auto()
    for sign in (1, -1):
        gradients(extractor, model, Sum(), SampleBatch.of_rows(sign * torch.rand(12, 3).double(), 12))
        assert not extractor.one_by_one


def test_a_model_that_hooks_refuse_is_tried_again_only_after_many_samples(monkeypatch):
    tried, number = [], 0
    cover = Planner.cover
    monkeypatch.setattr(Planner, "cover", lambda *args: tried.append(number) or cover(*args))
    model, extractor = Hidden(item=False).double(), Auto()
    for number in range(85):  # noqa: B007
        batch = SampleBatch.of_rows(torch.randn(4, 3).double(), 4)
        found = gradients(extractor, model, Reaches(), batch)[1]["layer.weight"]
        expected = autograd_loop(model, Reaches(), batch, 4)[1]["layer.weight"]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    assert tried == [0, 80]


def now_and_then(model, batch):
    """A loss per sample in a loop where the first label is 0."""
    if batch[1][0]:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return torch.stack([nn.functional.cross_entropy(model(x[None]), y[None]) for x, y in zip(*batch, strict=True)])


def test_batches_that_hooks_do_between_those_that_they_refuse_add_no_line(caplog):
    caplog.set_level(logging.INFO)
    model, extractor, ways = nn.Linear(3, 2).double(), Auto(), set()
    for sign in (1, -1, -1, -1, 1, 1, -1, 1):
        batch = SampleBatch.of_rows((torch.rand(180, 3).double(), torch.full((180,), int(sign < 0))), 180)
        gradients(extractor, model, Loss(now_and_then), batch)
        ways.add(extractor.one_by_one)
    assert ways == {True, False}
    assert [record.getMessage()[:59] for record in caplog.records] == [
        "gradients  one sample at a time where hooks fail, which is "
    ]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_of_transformers_changes_nothing():
    torch.manual_seed(0)
    model, batch = bert().eval(), text_batch()(3)
    task = type("First", (Sum,), {"output": lambda self, model, batch: model(**batch).logits[:, 0]})()
    layout = ParameterLayout.of(model)

    def grads():
        found = {}
        Auto().extract(
            model, task, SampleBatch.of_rows(batch, 3), layout, lambda b: found.__setitem__(b.name, b.dense())
        )
        return found

    before = grads()
    model.gradient_checkpointing_enable()
    for name, grad in grads().items():
        torch.testing.assert_close(grad, before[name])
