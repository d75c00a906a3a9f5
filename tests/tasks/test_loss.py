"""Minus the user's own loss: gradients of the output are minus those of the loss, whoever computes it."""

import lightning as L
import numpy as np
import pytest
import torch
from hugging_face import bert
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset
from transformers import BatchEncoding

from trak_lightning import TRAK, registry
from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import DataError, OneSampleAtATime, SettingsError, UnsupportedModelError
from trak_lightning.extractors.auto import Auto
from trak_lightning.gradients import ParameterLayout
from trak_lightning.tasks.base import batch_of, current_size
from trak_lightning.testing import TaskConformance

B = 4


def every_sample(model, batch):
    return cross_entropy(model(batch[0]), batch[1], reduction="none", label_smoothing=0.1)


def one_number(model, batch):
    return cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)


class Lit(L.LightningModule):
    """As people write them: its own layers, called directly, and metrics logged."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3))

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        loss = cross_entropy(self.net(inputs), labels, label_smoothing=0.1)
        self.log("train/loss", loss, prog_bar=True)
        return {"loss": loss}


def pair():
    torch.manual_seed(0)
    return torch.randn(B, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1])


def encoding():
    ids = torch.arange(5 * B).reshape(B, 5) % 10 + 1
    return BatchEncoding({"input_ids": ids, "attention_mask": ids % 3 > 0, "labels": torch.tensor([0, 1, 2, 1])})


CASES = {
    "a function of every sample": (every_sample, Lit, pair, lambda m, b: one_number(m.net, b)),
    "a function of the batch": (one_number, Lit, pair, lambda m, b: one_number(m.net, b)),
    "training_step": ("training_step", Lit, pair, lambda m, b: one_number(m.net, b)),
    "the model's own": (None, bert, encoding, lambda m, b: m(**b).loss),
}


@pytest.mark.parametrize("kind", CASES)
def test_the_sum_of_all_gradients_is_minus_the_gradient_of_the_loss(kind):
    function, make, batch, loss = CASES[kind]
    torch.manual_seed(1)
    model, batch = make().double().eval(), batch()
    calls = model if kind == "training_step" or function is None else model.net
    layout = ParameterLayout.of(calls)
    rows = {slot.name: torch.zeros(B, *slot.shape, dtype=torch.float64) for slot in layout}

    def sink(block):
        rows[block.name][block.samples] += block.dense()

    task = registry.create("tasks", {"name": "loss", "function": function})
    output = Auto().extract(calls, task, SampleBatch.of_rows(batch, B), layout, sink)
    expected = loss(model, batch)
    grads = torch.autograd.grad(expected, list(calls.parameters()))
    torch.testing.assert_close(-output.mean(), expected.detach())
    for slot, grad in zip(layout, grads, strict=True):
        torch.testing.assert_close(-rows[slot.name].mean(0), grad, rtol=1e-9, atol=1e-12)
    assert (task.loss_weight(calls, batch, output) == 1).all()
    assert not task.curvature(calls, batch, output).any()


@pytest.mark.parametrize("function", [one_number, every_sample])
def test_one_number_for_a_batch_is_refused_where_the_number_of_samples_is_known(function):
    task = registry.create("tasks", {"name": "loss", "function": function})
    model, (inputs, labels) = nn.Linear(3, 3).double(), pair()
    expected = -every_sample(model, (inputs, labels))
    with batch_of(B):
        if function is one_number:
            with pytest.raises(OneSampleAtATime, match=f"one number for a batch of {B} samples.*reduction='none'"):
                task.output(model, (inputs, labels))
        else:
            torch.testing.assert_close(task.output(model, (inputs, labels)), expected)
        with batch_of(1):
            torch.testing.assert_close(task.output(model, (inputs[2:3], labels[2:3])), expected[2:3])
        assert current_size() == B
    assert current_size() is None


def test_a_loss_of_one_sample_needs_no_batch_first_tensors():
    def of_sequence(model, batch):  # (T, B, 3)
        return model(batch["sequence"]).square().mean()

    model, batch = nn.Linear(3, 1).double(), {"sequence": torch.randn(7, 1, 3, dtype=torch.float64)}
    with batch_of(1):
        output = registry.create("tasks", {"name": "loss", "function": of_sequence}).output(model, batch)
    torch.testing.assert_close(output, -of_sequence(model, batch).reshape(1))


WEIGHT = torch.tensor([1.0, 5.0, 10.0], dtype=torch.float64)


def class_weighted(model, batch):
    return cross_entropy(model(batch[0]), batch[1], weight=WEIGHT)


def leaves_one_out(model, batch):
    return cross_entropy(model(batch[0]), batch[1], ignore_index=1)


def compares_samples(model, batch):
    hidden = model(batch[0])
    return -(hidden @ hidden.T).log_softmax(-1).diagonal().mean()


def added_up(model, batch):
    return cross_entropy(model(batch[0]), batch[1], reduction="sum")


def with_weight_decay(model, batch):
    return one_number(model, batch) + 0.1 * sum(parameter.square().sum() for parameter in model.parameters())


def single_outputs(task, model, batch):
    """As the featurizer calls a task that refuses a batch."""
    with batch_of(B), pytest.raises(OneSampleAtATime) as refused:
        task.output(model, batch)
    with batch_of(1):
        outputs = torch.cat([task.output(model, tuple(leaf[i : i + 1] for leaf in batch)) for i in range(B)])
    return refused.value.whole, outputs


@pytest.mark.parametrize("function", [class_weighted, leaves_one_out, compares_samples])
@pytest.mark.parametrize("size_is_known", [True, False])
def test_a_loss_that_is_no_mean_over_samples_is_refused(function, size_is_known):
    task, model, batch = (
        registry.create("tasks", {"name": "loss", "function": function}),
        nn.Linear(3, 3).double(),
        pair(),
    )
    check, args = task.output, (model, batch)
    if size_is_known:
        check, args = task.require_agreement, single_outputs(task, model, batch)
    with pytest.raises(
        DataError, match=r"neither the mean .* nor the sum .*class_weight of image_.*reduction='none'.*trusted"
    ):
        check(*args)


@pytest.mark.parametrize("function", [one_number, added_up, with_weight_decay])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_mean_or_a_sum_over_samples_is_accepted_in_every_precision(function, dtype):
    torch.manual_seed(1)
    task, model = registry.create("tasks", {"name": "loss", "function": function}), nn.Linear(3, 3).to(dtype)
    inputs, labels = pair()
    task.require_agreement(*single_outputs(task, model, (inputs.to(dtype), labels)))


def test_every_batch_is_compared(tmp_path):
    """A loss per token of the batch is the mean over samples as long as all have the same number of tokens."""

    def per_token(model, batch):
        return cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    tokens = torch.zeros(12, 4, dtype=torch.long)
    tokens[9, 1:] = -100
    data = TensorDataset(torch.randn(12, 4, 3), tokens)
    trak = TRAK(nn.Linear(3, 3).eval(), {"name": "loss", "function": per_token}, tmp_path)
    with pytest.raises(DataError, match="the loss of a batch of 4 samples is .* neither the mean"):
        trak.featurize(data, batch_size=4)


def test_the_functional_extractor_refuses_one_number_for_a_batch(tmp_path):
    trak = TRAK(nn.Linear(3, 3).eval(), {"name": "loss", "function": one_number}, tmp_path, extractor="functional")
    with pytest.raises(OneSampleAtATime, match="returned one number for a batch.*extractor='auto' or 'iterative'"):
        trak.featurize(TensorDataset(*(part.float() if part.is_floating_point() else part for part in pair())))


def test_losses_of_single_samples_are_attributed_if_the_user_says_so():
    settings = {"name": "loss", "function": class_weighted, "single_losses": "trusted"}
    task, model, batch = registry.create("tasks", settings), nn.Linear(3, 3).double(), pair()
    whole, outputs = single_outputs(task, model, batch)
    task.require_agreement(whole, outputs)
    torch.testing.assert_close(outputs, -cross_entropy(model(batch[0]), batch[1], reduction="none"))


def of_the_net(model, batch):
    return cross_entropy(model.net(batch[0]), batch[1], reduction="none", label_smoothing=0.1)


@pytest.mark.parametrize(
    ("manual", "message"), [(True, "optimizes manually"), (False, "fails without training: .*Does it use the trainer")]
)
def test_a_training_step_that_trains_is_refused_by_name(manual, message, tmp_path):
    class Manual(Lit):
        def training_step(self, batch, batch_idx):
            self.optimizers().step()

    model = Manual().eval()
    model.automatic_optimization = not manual
    trak = TRAK(model, {"name": "loss", "function": "training_step"}, tmp_path)
    with pytest.raises(UnsupportedModelError, match=f"Manual {message}.*package.module.function"):
        trak.featurize([(torch.zeros(6), 0)] * 4)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_loss_that_is_weighted_by_the_number_of_the_batch_is_refused(reduction, batch_size, tmp_path):
    class WarmUp(Lit):
        def training_step(self, batch, batch_idx):
            return cross_entropy(self.net(batch[0]), batch[1], reduction=reduction) * min(1, (batch_idx + 1) / 1000)

    trak = TRAK(WarmUp().eval(), {"name": "loss", "function": "training_step"}, tmp_path)
    with pytest.raises(SettingsError, match="weights losses by batch_idx: .* at batch_idx 0 and .* at 1"):
        trak.featurize(TensorDataset(torch.randn(8, 3), torch.arange(8) % 3), batch_size=batch_size)


def test_a_lightning_module_is_attributed_by_its_training_step(tmp_path):
    torch.manual_seed(0)
    model, data = Lit().eval(), TensorDataset(torch.randn(20, 3), torch.arange(20) % 3)
    scores = []
    for name, function in (("step", "training_step"), ("same", of_the_net)):
        projector = {"name": "sparse_jl", "dim": 32}
        trak = TRAK(model, {"name": "loss", "function": function}, tmp_path / name, projector=projector)
        trak.featurize(data)
        scores.append(np.array(trak.score(TensorDataset(*data[:5])).values))
    assert scores[0].any()
    np.testing.assert_allclose(*scores, rtol=1e-3, atol=1e-3 * np.abs(scores[0]).max())
    assert "log" not in vars(model), "the module logs no more"


def test_scorers_that_need_the_curvature_of_the_loss_say_that_there_is_none(tmp_path):
    data = TensorDataset(torch.randn(8, 3), torch.arange(8) % 3)
    trak = TRAK(nn.Linear(3, 3).eval(), {"name": "loss", "function": every_sample}, tmp_path, projector="identity")
    trak.featurize(data)
    with pytest.raises(DataError, match=r"is 0 with weights='gauss_newton'.*use weights='residual'"):
        trak.score(data, scorer="influence")


class TestLoss(TaskConformance):
    def task(self=None):
        return registry.create("tasks", {"name": "loss", "function": every_sample})

    def model(self):
        return nn.Linear(3, 3)

    def batch(self, size):
        return torch.randn(size, 3), torch.randint(3, (size,))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"function": "no.such.function"}, SettingsError, "there is no function 'no.such.function'"),
        ({"function": "loss"}, SettingsError, "package.module.function, or training_step"),
        ({"function": "math:pi"}, SettingsError, "math:pi is a float and no function"),
        ({"function": "math.pi"}, SettingsError, "math.pi is a float and no function"),
        ({}, DataError, "a tuple of length 2: .*, where entries with names .*function: …"),
        ({"function": lambda model, batch: torch.ones(3)}, DataError, r"one per sample, \(4,\); got .* \(3,\)"),
        (
            {"function": lambda model, batch: {"logits": 1}},
            DataError,
            "something with a 'loss'; it returned a dict with logits",
        ),
    ],
)
def test_what_gives_no_loss_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        registry.create("tasks", {"name": "loss", **settings}).output(nn.Linear(3, 3), pair())
