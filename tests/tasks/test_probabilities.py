"""Probabilities are told from logits, and used as what they are if the user says so."""

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy, nll_loss

from trak_lightning import registry
from trak_lightning.errors import DataError
from trak_lightning.tasks.margin import margin

B, C = 40, 4
CLASSES = torch.arange(B) % C
YES = torch.arange(B) % 2


class Ends(nn.Module):
    """A linear model that ends in `last`."""

    def __init__(self, last, out=C, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.last = nn.Linear(6, out, dtype=dtype), last

    def forward(self, inputs):
        return self.last(self.linear(inputs))


INPUTS = torch.randn(B, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SOFT = {
    "softmax": lambda z: z.softmax(-1),
    "softmax, clamped": lambda z: z.softmax(-1).clamp(1e-7, 1 - 1e-7),
    "softmax by hand": lambda z: z.exp() / z.exp().sum(-1, keepdim=True),
    "exp of log-softmax": lambda z: z.log_softmax(-1).exp(),
    "sigmoid per class": torch.sigmoid,
}
SIGMOID = {
    "sigmoid": torch.sigmoid,
    "squeezed": lambda z: z.sigmoid().squeeze(-1),
    "cast and clamped": lambda z: z.sigmoid().float().clamp(0.01, 0.99)[:, 0],
    "one of a softmax": lambda z: torch.cat([-z, z], 1).softmax(1)[:, 1],
    "log-sigmoid": nn.functional.logsigmoid,
}


@pytest.mark.parametrize("end", SOFT)
@pytest.mark.parametrize("name", ["image_classification", "token_classification"])
def test_class_probabilities_are_refused_with_the_ways_out(name, end):
    inputs, labels = (INPUTS, CLASSES) if name.startswith("image") else (INPUTS.view(8, 5, 6), CLASSES.view(8, 5))
    message = "are probabilities.*without the last Softmax.*NLLLoss.*outputs_are: probabilities.*outputs_are: logits"
    with pytest.raises(DataError, match=message):
        registry.create("tasks", name).output(Ends(SOFT[end]), (inputs, labels))


@pytest.mark.parametrize("end", SIGMOID)
def test_a_sigmoid_is_refused_with_the_ways_out(end):
    message = "probabilities .a .* computes them.*without the last Sigmoid.*BCELoss.*outputs_are: probabilities"
    with pytest.raises(DataError, match=message):
        registry.create("tasks", "binary_classification").output(Ends(SIGMOID[end], 1), (INPUTS, YES))


def test_a_sigmoid_in_a_batch_of_one_is_recognized():
    with pytest.raises(DataError, match="a sigmoid computes them"):
        registry.create("tasks", "multilabel").output(Ends(torch.sigmoid), (INPUTS[:1], torch.ones(1, C)))


def test_values_tell_where_the_graph_does_not():
    """A trained model that computes its sigmoid by hand."""
    z = torch.where(YES == 1, 4.0, -4.0).unsqueeze(1)
    with torch.no_grad(), pytest.raises(DataError, match="as their values show"):
        registry.create("tasks", "binary_classification").output(lambda inputs: 1 / (1 + torch.exp(-z)), (INPUTS, YES))


@pytest.mark.parametrize(
    "outputs",
    [
        torch.rand(B, C, generator=torch.Generator().manual_seed(0)),
        torch.zeros(B, C),
        torch.full((B, C), 0.3),
        torch.randn(B, C).log_softmax(-1),
        torch.full((1, 2), 0.5),
    ],
)
def test_logits_within_zero_and_one_and_log_probabilities_are_logits(outputs):
    labels = CLASSES[: len(outputs)] % outputs.shape[1]
    found = registry.create("tasks", "image_classification").output(lambda inputs: outputs, (INPUTS, labels))
    torch.testing.assert_close(found, margin(outputs, labels))


@pytest.mark.parametrize("seed", range(5))
def test_binary_logits_within_zero_and_one_are_logits_if_labels_follow_them(seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.rand(4000, generator=generator)
    labels = (torch.rand(4000, generator=generator) < torch.sigmoid(z)).long()
    registry.create("tasks", "binary_classification").output(lambda inputs: z, (z, labels))


def test_log_probabilities_have_the_margins_of_their_logits():
    task, logits = registry.create("tasks", "image_classification"), Ends(lambda z: z)
    found = task.output(Ends(lambda z: z.log_softmax(-1)), (INPUTS, CLASSES))
    torch.testing.assert_close(found, task.output(logits, (INPUTS, CLASSES)))


def gradients(model, task, batch):
    output = task.output(model, batch)
    weight = task.loss_weight(model, batch, output.detach())
    return torch.autograd.grad((weight * output).sum(), list(model.parameters()))


@pytest.mark.parametrize(
    ("settings", "out", "last", "labels", "loss"),
    [
        (
            {"name": "image_classification", "class_weight": [1.0, 2.0, 3.0, 4.0]},
            C,
            lambda z: z.softmax(-1),
            CLASSES,
            lambda p, y: nll_loss(p.log(), y, weight=torch.arange(1.0, 5, dtype=p.dtype), reduction="sum"),
        ),
        (
            {"name": "binary_classification"},
            1,
            torch.sigmoid,
            YES,
            lambda p, y: binary_cross_entropy(p[:, 0], y.double(), reduction="sum"),
        ),
        (
            {"name": "multilabel", "reduction": "sum"},
            C,
            torch.sigmoid,
            nn.functional.one_hot(CLASSES),
            lambda p, y: binary_cross_entropy(p, y.double(), reduction="sum"),
        ),
    ],
)
def test_declared_probabilities_have_the_gradient_of_their_loss(settings, out, last, labels, loss):
    model, batch = Ends(last, out), (INPUTS, labels)
    task = registry.create("tasks", {**settings, "outputs_are": "probabilities"})
    theirs = torch.autograd.grad(loss(model(INPUTS), labels), list(model.parameters()))
    for our, their in zip(gradients(model, task, batch), theirs, strict=True):
        torch.testing.assert_close(our, -their)


def test_probabilities_used_as_logits_are_those_of_a_loss_that_does_the_same():
    model, task = (
        Ends(lambda z: z.softmax(-1)),
        registry.create("tasks", {"name": "image_classification", "outputs_are": "logits"}),
    )
    loss = nn.functional.cross_entropy(model(INPUTS), CLASSES, reduction="sum")
    for our, their in zip(
        gradients(model, task, (INPUTS, CLASSES)), torch.autograd.grad(loss, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(our, -their)


def test_certain_probabilities_stay_finite():
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    for name, outputs, labels in (("image_classification", p, [0, 0]), ("binary_classification", p[:, 0], [1, 1])):
        task = registry.create("tasks", {"name": name, "outputs_are": "probabilities"})
        assert task.output(lambda inputs, outputs=outputs: outputs, (p, torch.tensor(labels))).isfinite().all()
