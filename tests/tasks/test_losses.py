"""q and r of every built-in task against torch's own loss functions, in float64: −q·∇f is the gradient of the loss, and r its
second derivative along f."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from trak_lightning import registry
from trak_lightning.errors import DataError, SettingsError
from trak_lightning.tasks.base import batch_of

B, T, C = 5, 4, 3


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def integers(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(high))


def each(
    criterion: Callable[..., Tensor], reduction: str = "sum", **options: Any
) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of a batch as the losses (B,) of its samples."""
    return lambda logits, labels: torch.stack(
        [
            criterion(one.unsqueeze(0), label.unsqueeze(0), reduction=reduction, **options)
            for one, label in zip(logits, labels, strict=True)
        ]
    )


def tokens(reduction: str = "sum", **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        values = cross_entropy(logits.transpose(1, 2), labels, reduction="none", **options).sum(1)
        return values / (labels != -100).sum(1) if reduction == "mean" else values

    return loss


def label_of(logits: Tensor, labels: Tensor) -> Tensor:
    """The direction in which only the logit of the label grows."""
    return one_hot(labels.clamp(min=0), logits.shape[-1]).double()


def towards(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.where(labels.nan_to_num() == 1, 1.0, -1.0).double().view_as(logits)


def upwards(predicted: Tensor, labels: Tensor) -> Tensor:
    return torch.ones_like(predicted)


WEIGHTS = [0.5, 2.0, 1.5]
WEIGHT = torch.tensor(WEIGHTS, dtype=torch.float64)
CLASSES, YES, TOKENS = integers(C, B), integers(2, B), integers(C, B, T)
TOKENS[0, 2:], TOKENS[3, 0] = -100, -100
SEVERAL = integers(2, B, C)
UNKNOWN = SEVERAL.double()
UNKNOWN[1, 1], UNKNOWN[2, 0] = torch.nan, -100


def known(logits: Tensor, labels: Tensor) -> Tensor:
    counted = (labels == 0) | (labels == 1)
    values = binary_cross_entropy_with_logits(logits, torch.where(counted, labels, 0), reduction="none")
    return torch.where(counted, values, 0).sum(1)


@dataclass
class Case:
    """A task, labels, the loss it stands for, and whether that is a function of f alone."""

    task: str
    logits: Tensor
    labels: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    direction: Callable[[Tensor, Tensor], Tensor] = label_of
    settings: dict[str, Any] = field(default_factory=dict)
    exact: bool = True


def smoothed(labels: Tensor) -> Tensor:
    return labels.double() * 0.8 + 0.1


CASES = [
    Case("image_classification", normal(B, C), CLASSES, each(cross_entropy)),
    Case("text_classification", normal(B, C), CLASSES, each(cross_entropy)),
    Case(
        "text_classification",
        normal(B, C),
        CLASSES,
        each(cross_entropy, weight=WEIGHT),
        settings={"class_weight": WEIGHTS},
    ),
    Case(
        "text_classification",
        normal(B, C),
        CLASSES,
        each(cross_entropy, label_smoothing=0.2),
        settings={"label_smoothing": 0.2},
        exact=False,
    ),
    Case(
        "image_classification",
        normal(B, C),
        CLASSES,
        each(cross_entropy, label_smoothing=0.2, weight=WEIGHT),
        settings={"label_smoothing": 0.2, "class_weight": WEIGHTS},
        exact=False,
    ),
    Case(
        "binary_classification",
        normal(B),
        YES,
        lambda z, y: each(binary_cross_entropy_with_logits)(z, y.double()),
        towards,
    ),
    Case(
        "binary_classification",
        normal(B, 1),
        YES.double().unsqueeze(1),
        each(binary_cross_entropy_with_logits, pos_weight=torch.tensor(3.0, dtype=torch.float64)),
        towards,
        {"pos_weight": 3.0},
    ),
    Case(
        "binary_classification",
        normal(B),
        YES.bool(),
        lambda z, y: each(binary_cross_entropy_with_logits, pos_weight=torch.tensor(3.0))(z, smoothed(y)),
        towards,
        {"pos_weight": 3.0, "label_smoothing": 0.2},
    ),
    Case("regression", normal(B), normal(B, 1)[:, 0], lambda f, y: (y - f).square() / 2, upwards),
    Case("regression", normal(B, 1), normal(B, 1), lambda f, y: (y - f)[:, 0].square() / 2, upwards),
    Case(
        "regression",
        normal(B, 3),
        normal(B, 3) + 1,
        lambda f, y: (y - 3 - 2 * f)[:, 1].square() / 2,
        lambda f, y: torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).expand_as(f),
        {"component": 1, "mean": [9.0, 3.0, 9.0], "std": 2},
    ),
    Case("token_classification", normal(B, T, C), TOKENS, tokens(), exact=False),
    Case("token_classification", normal(B, T, C), TOKENS, tokens("mean"), settings={"reduction": "mean"}, exact=False),
    Case("token_classification", normal(B, T, C), TOKENS, tokens(), settings={"level": "token"}),
    Case(
        "token_classification",
        normal(B, T, C),
        TOKENS,
        tokens("mean", weight=WEIGHT),
        settings={"level": "token", "reduction": "mean", "class_weight": WEIGHTS},
    ),
    Case(
        "token_classification",
        normal(B, T, C),
        TOKENS,
        tokens(weight=WEIGHT, label_smoothing=0.2),
        settings={"label_smoothing": 0.2, "class_weight": WEIGHTS},
    ),
    Case(
        "multilabel",
        normal(B, C),
        SEVERAL,
        lambda z, y: each(binary_cross_entropy_with_logits)(z, y.double()),
        towards,
        {"level": "sample", "reduction": "sum"},
        exact=False,
    ),
    Case(
        "multilabel",
        normal(B, C),
        SEVERAL,
        lambda z, y: each(binary_cross_entropy_with_logits, "mean")(z, y.double()),
        towards,
    ),
    Case(
        "multilabel",
        normal(B, C),
        SEVERAL,
        lambda z, y: each(binary_cross_entropy_with_logits, "mean", pos_weight=WEIGHT)(z, smoothed(y)),
        towards,
        {"pos_weight": WEIGHTS, "label_smoothing": 0.2},
    ),
    Case("multilabel", normal(B, C), UNKNOWN, known, towards, {"reduction": "sum"}),
]


class Given(nn.Module):
    """Returns given predictions, moved by δ in some direction."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.logits = nn.Parameter(case.logits)
        self.delta = nn.Parameter(torch.zeros(len(case.logits), dtype=torch.float64))
        self.direction = case.direction(case.logits, case.labels)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits + self.delta.view(-1, *[1] * (self.logits.ndim - 1)) * self.direction


@pytest.fixture(params=CASES, ids=lambda case: "-".join([case.task, *case.settings]))
def case(request):
    return request.param


def test_loss_weights_make_gradients_of_outputs_those_of_the_loss(case):
    task, model = registry.create("tasks", {"name": case.task, **case.settings}), Given(case)
    batch = (torch.zeros(len(case.logits)), case.labels)
    output = task.output(model, batch)
    weight = task.loss_weight(model, batch, output.detach())
    ours = torch.autograd.grad((-weight * output).sum(), [model.logits, model.delta])
    theirs = torch.autograd.grad(case.loss(model(batch[0]), case.labels).sum(), [model.logits, model.delta])
    # Both as a function of δ alone, which moves all margins of a sample by the same amount.
    if case.settings.get("level") in (None, "sample") or case.exact:
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-10, atol=1e-12)
    if case.exact:
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-10, atol=1e-12)


def test_curvature_is_the_second_derivative_of_the_loss_along_the_output(case):
    task, model = registry.create("tasks", {"name": case.task, **case.settings}), Given(case)
    batch = (torch.zeros(len(case.logits)), case.labels)
    loss = case.loss(model(batch[0]), case.labels).sum()
    (slope,) = torch.autograd.grad(loss, model.delta, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), model.delta)
    output = task.output(model, batch)
    if task.meaning.output == "negative loss":
        assert not task.curvature(model, batch, output.detach()).any()
        return
    (speed,) = torch.autograd.grad(output.sum(), model.delta)
    curvature = task.curvature(model, batch, output.detach())
    torch.testing.assert_close(curvature * speed.square(), second, rtol=1e-10, atol=1e-12)


def test_a_sequence_without_labels_says_nothing():
    task = registry.create("tasks", {"name": "token_classification", "level": "token", "reduction": "mean"})
    logits = normal(2, T, C).requires_grad_()
    batch = torch.zeros(2), torch.stack([TOKENS[1], torch.full((T,), -100)])
    output = task.output(lambda inputs: logits, batch)
    weight, curvature = task.loss_weight_and_curvature(lambda inputs: logits, batch, output)
    assert output[1] == weight[1] == curvature[1] == 0
    (grad,) = torch.autograd.grad(output.sum(), logits)
    assert not grad[1].any()
    assert grad[0].any()


@pytest.mark.parametrize(
    ("settings", "logits", "labels", "message"),
    [
        ({"name": "binary_classification"}, normal(B, 2), YES, "shape of the logits.*text_classification"),
        ({"name": "binary_classification"}, normal(B), YES * 2 - 1, "must be 0 or 1, got -1"),
        ({"name": "multilabel"}, normal(B), YES, r"logits of shape \(B, labels\)"),
        ({"name": "multilabel"}, normal(B, C), SEVERAL * 2, "must be 0 or 1, got 2"),
        ({"name": "multilabel", "pos_weight": [1.0]}, normal(B, C), SEVERAL, "1 weights, and the model returns 3"),
        ({"name": "regression"}, normal(B, 2), normal(B, 2), r"\(5, 2\).*component: 0"),
        (
            {"name": "regression"},
            normal(B, 2, 3),
            normal(B, 2, 3),
            r"\(5, 2, 3\).*None. For all .*task loss .*flatten\(1\).mean\(1\)",
        ),
        (
            {"name": "regression", "component": 1, "std": [1, 2, 3]},
            normal(B, 2),
            normal(B, 2),
            r"one number for each prediction of the model, which are \(5, 2\), or one number; they hold 3",
        ),
        ({"name": "regression", "component": 2}, normal(B, 2), normal(B, 2), "component is 2"),
        ({"name": "regression"}, normal(B), normal(B, 2)[:, 0][:2], r"shape of the prediction, \(5,\); got \(2,\)"),
        ({"name": "token_classification"}, normal(B, C), CLASSES, r"logits of shape \(B, T, classes\)"),
        (
            {"name": "token_classification"},
            normal(B, T, C),
            TOKENS + 1,
            r"label 3 is out of range.*or be -100 .sample 0 of the batch, token 1\)",
        ),
        ({"name": "text_classification"}, normal(B, T, C), TOKENS, r"logits of shape \(B, classes\)"),
        ({"name": "text_classification", "class_weight": [1.0]}, normal(B, C), CLASSES, "1 weights, .* 3 logits"),
    ],
)
def test_what_does_not_fit_is_refused(settings, logits, labels, message):
    task, batch = registry.create("tasks", settings), (torch.zeros(B), labels)
    with pytest.raises(DataError, match=message):
        task.loss_weight(lambda inputs: logits, batch, task.output(lambda inputs: logits, batch))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "regression"}, "must come first, and here dimension 1 has their number: transpose"),
        ({"name": "regression", "component": 0}, "must come first, and here dimension 1 has their number: transpose"),
        (
            {"name": "loss", "function": lambda model, batch: model(batch[0])},
            r"loss.transpose\(0, 1\).flatten\(1\).mean\(1\)",
        ),
    ],
)
def test_predictions_with_time_first_are_told_where_their_samples_are(settings, message):
    with batch_of(B), pytest.raises(DataError, match=message):
        registry.create("tasks", settings).output(lambda inputs: normal(2, B), (torch.zeros(B), normal(B, 2)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "text_classification", "label_smoothing": 1.0}, "label_smoothing must lie in"),
        ({"name": "token_classification", "class_weight": [-1.0, 1.0]}, "class_weight must hold numbers"),
        ({"name": "binary_classification", "pos_weight": 0.0}, "pos_weight must be positive, got 0.0"),
        ({"name": "regression", "std": 0}, "std must be positive, got 0.0: it is what training_step divides labels by"),
        ({"name": "regression", "mean": "nan"}, "mean must be a number, got 'nan'"),
        ({"name": "regression", "std": [1, 2]}, "std holds 2 numbers.* is None: give one number, or .* in 0 … 1"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        registry.create("tasks", settings)
