"""training_step shows which loss a model was trained with."""

import re

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from torch.utils.data import TensorDataset

from trak_lightning import TRAK

WEIGHTS = [1.0, 2.0, 5.0]


class Net(L.LightningModule):
    def __init__(self, loss, classes=3):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, classes))
        self.loss, self.seen = loss, []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.loss(self, self(x), y)
        self.log("loss", loss)
        self.seen.append(loss.item())
        return loss


def focal(module, logits, y):
    p = logits.softmax(1)[torch.arange(len(y)), y]
    return -((1 - p) ** 2 * p.log()).mean()


def decayed(module, logits, y):
    return cross_entropy(logits, y) + 1e-5 * sum(each.square().sum() for each in module.parameters())


def weighted(module, logits, y):
    return cross_entropy(logits, y, torch.tensor(WEIGHTS), reduction="none").mean()


CLASSES = ("image_classification", lambda x: (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long())
YES_OR_NO = ("binary_classification", lambda x: (x[:, :1] > 0).float())
NUMBER = ("regression", lambda x: 3 * x[:, :1] + 7)
CASES = {
    "as the task": (CLASSES, lambda module, f, y: cross_entropy(f, y), False),
    "times a factor": (CLASSES, lambda module, f, y: 10 * cross_entropy(f, y, reduction="sum"), False),
    "with weight decay": (CLASSES, decayed, False),
    "smoothed": (CLASSES, lambda module, f, y: cross_entropy(f, y, label_smoothing=0.1), True),
    "weighted": (CLASSES, weighted, True),
    "weighted by torch, as the task knows": (
        ({"name": CLASSES[0], "class_weight": WEIGHTS}, CLASSES[1]),
        lambda module, f, y: cross_entropy(f, y, torch.tensor(WEIGHTS)),
        False,
    ),
    "weighted, as the task knows": (({"name": CLASSES[0], "class_weight": WEIGHTS}, CLASSES[1]), weighted, False),
    "focal": (CLASSES, focal, True),
    "random": (CLASSES, lambda module, f, y: cross_entropy(torch.rand(()) * f, y), False),
    "needs a training": (CLASSES, lambda module, f, y: cross_entropy(f, y) / module.trainer.max_epochs, False),
    "yes or no": (YES_OR_NO, lambda module, f, y: binary_cross_entropy_with_logits(f, y), False),
    "weighted yes": (
        YES_OR_NO,
        lambda module, f, y: binary_cross_entropy_with_logits(f, y, pos_weight=torch.tensor(4.0)),
        True,
    ),
    "a number": (NUMBER, lambda module, f, y: mse_loss(f, y), False),
    "a scaled number": (NUMBER, lambda module, f, y: mse_loss(f, (y - 7) / 3), True),
    "absolute error": (NUMBER, lambda module, f, y: (f - y).abs().mean(), True),
}


@pytest.mark.parametrize(("problem", "loss", "warned"), CASES.values(), ids=CASES)
def test_a_training_step_with_another_loss_is_noticed(problem, loss, warned, tmp_path, caplog):
    (task, labels), x = problem, torch.randn(60, 5)
    y = labels(x)
    model = Net(loss, 3 if y.ndim == 1 else 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        own = {torch.Size([60]): cross_entropy}.get(y.shape, mse_loss if "regr" in str(task) else None)
        (own or binary_cross_entropy_with_logits)(model(x), y).backward()
        optimizer.step()
    trak = TRAK(model.eval(), task, tmp_path, projector="identity")
    trak.featurize(TensorDataset(x, y), checkpoints=[model])
    assert caplog.text.count("training_step of Net has another loss") == warned
    assert model.seen == [], "what training_step keeps is put back"


@pytest.mark.parametrize("shape", [(60,), (60, 1)])
def test_a_weight_of_yes_that_is_in_training_step_alone_is_offered(shape, tmp_path, caplog):
    torch.manual_seed(0)
    x = torch.randn(60, 5)

    def loss(module, f, y):
        return binary_cross_entropy_with_logits(f.view(y.shape), y, pos_weight=torch.tensor(0.6))

    data = TensorDataset(x, (x[:, 0] > 0).float().view(shape))
    TRAK(Net(loss, 1).eval(), "binary_classification", tmp_path).check(data)
    assert "(pos_weight: 0.6 makes it one factor)" in caplog.text
    caplog.clear()
    TRAK(Net(loss, 1).eval(), {"name": "binary_classification", "pos_weight": 0.6}, tmp_path).check(data)
    assert "another loss" not in caplog.text
    smooth = Net(lambda module, f, y: binary_cross_entropy_with_logits(f.view(y.shape), 0.6 * y + 0.2), 1).eval()
    with torch.no_grad():
        smooth.net[0].weight.mul_(5)
    TRAK(smooth, "binary_classification", tmp_path).check(data)
    assert "another loss" in caplog.text
    assert "makes it one factor" not in caplog.text


@pytest.mark.parametrize(
    ("loss", "option"),
    [
        (lambda module, f, y: mse_loss(f, (y - 500) / 40), "(mean: 500, std: 40, to four digits)"),
        (lambda module, f, y: mse_loss(f, y / 40) / 2, "(mean: 0, std: 40, to four digits)"),
        (lambda module, f, y: mse_loss(f, (y / 500).log()), None),
    ],
    ids=["standardized", "divided", "log"],
)
@pytest.mark.parametrize("given", [{}, {"mean": 100.0, "std": 7.0}], ids=["not told", "told wrong numbers"])
def test_the_mean_and_the_std_by_which_training_scales_labels_are_named(loss, option, given, tmp_path, caplog):
    torch.manual_seed(0)
    x = torch.randn(60, 5)
    model, data = Net(loss, 1).eval(), TensorDataset(x, 500 + 40 * x[:, :1])
    TRAK(model, {"name": "regression", **given}, tmp_path).check(data)
    assert re.findall(r"\(mean: .*?\)", caplog.text) == ([option] if option else [])
    assert "another loss" in caplog.text


def test_a_task_that_scales_labels_as_training_does_has_its_loss(tmp_path, caplog):
    torch.manual_seed(0)
    x = torch.randn(60, 5)
    model = Net(lambda module, f, y: mse_loss(f, (y - 500) / 40), 1).eval()
    task = {"name": "regression", "mean": 500, "std": 40}
    TRAK(model, task, tmp_path).check(TensorDataset(x, 500 + 40 * x[:, :1]))
    assert "another loss" not in caplog.text


FRESH = {
    "as they are": (lambda module, f, y: mse_loss(f, y), False),
    "half, and times a factor": (lambda module, f, y: 1e-3 * mse_loss(f, y) / 2, False),
    "with a constant": (lambda module, f, y: mse_loss(f, y) + 1e9, False),
    "with a small term of the sample": (lambda module, f, y: mse_loss(f, y) + 4e6 * y.sin().mean(), False),
    "in thousands": (lambda module, f, y: mse_loss(f, y / 1000), True),
    "in thousands, with a constant": (lambda module, f, y: mse_loss(f, y / 1000) + 1e3, True),
}


@pytest.mark.parametrize("spread", [4_000, 40])
@pytest.mark.parametrize(("loss", "warned"), FRESH.values(), ids=FRESH)
def test_scaled_labels_are_noticed_before_training_where_all_are_far_from_the_predictions(
    loss, warned, spread, tmp_path, caplog
):
    torch.manual_seed(0)
    x = torch.randn(60, 5)
    model = Net(loss, 1).eval()
    TRAK(model, "regression", tmp_path).check(TensorDataset(x, 15_000 + spread * x[:, :1]))
    assert caplog.text.count("that are about 0.001 times the task's. Does it scale the labels?") == warned
    assert caplog.text.count("another loss") == warned


def per_token(reduction="mean", **options):
    return lambda module, f, y: cross_entropy(f.transpose(1, 2), y, reduction=reduction, **options)


def of_all_tokens(module, f, y):
    return cross_entropy(f.transpose(1, 2), y, reduction="none").mean()


def focal_tokens(module, f, y):
    each = cross_entropy(f.transpose(1, 2), y, reduction="none")
    return (each * (1 - (-each).exp()) ** 2).mean()


TOKENS = {
    "mean": ({}, per_token(), False),
    "sum": ({}, per_token("sum"), False),
    "mean of all": ({}, of_all_tokens, False),
    "each weighted": ({"level": "token"}, per_token(), False),
    "mean in both": ({"reduction": "mean"}, per_token(), False),
    "weighted, as the task knows": ({"class_weight": WEIGHTS}, per_token(weight=torch.tensor(WEIGHTS)), False),
    "smoothed": ({}, per_token(label_smoothing=0.2), True),
    "smoothed, as the task knows": ({"label_smoothing": 0.2}, per_token(label_smoothing=0.2), False),
    "focal": ({}, focal_tokens, True),
    "other labels": ({}, lambda module, f, y: per_token()(module, f, torch.where(y == -100, 0, y)), True),
}


@pytest.mark.parametrize(("options", "loss", "warned"), TOKENS.values(), ids=TOKENS)
def test_a_training_step_of_sequences_is_compared_token_by_token(options, loss, warned, tmp_path, caplog):
    torch.manual_seed(0)
    x = torch.randn(40, 7, 5)
    y = (
        CLASSES[1](x.flatten(0, 1))
        .view(40, 7)
        .masked_fill(torch.rand(40, 7) < torch.linspace(0, 0.7, 40)[:, None], -100)
    )
    y[:, 0] = 1
    model = Net(loss)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        per_token()(model, model(x), y).backward()
        optimizer.step()
    trak = TRAK(model.eval(), {"name": "token_classification", **options}, tmp_path, projector="identity")
    trak.featurize(TensorDataset(x, y), checkpoints=[model])
    assert caplog.text.count("training_step of Net has another loss") == warned
