"""Labels in every form that torch's losses take, and outputs of models that end in .squeeze(), mean what they mean in torch."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from trak_lightning import registry
from trak_lightning.errors import DataError
from trak_lightning.tasks.base import batch_of
from trak_lightning.tasks.margin import margin

B, T, C = 4, 5, 3
CLASSES = torch.tensor([0, 2, 1, 2])
TOKENS = torch.arange(B * T).reshape(B, T) % C
LOGITS, TOKEN_LOGITS = torch.randn(B, C, dtype=torch.float64), torch.randn(B, T, C, dtype=torch.float64)


def output(name, logits, labels, **settings):
    return registry.create("tasks", {"name": name, **settings}).output(lambda inputs: logits, (torch.zeros(B), labels))


FORMS = {
    **{
        str(dtype): (lambda y, dtype=dtype: y.to(dtype))
        for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32)
    },
    "a column": lambda y: y.unsqueeze(-1),
    "one-hot": lambda y: one_hot(y, C),
    "one-hot floats": lambda y: one_hot(y, C).float(),
    "one-hot flags": lambda y: one_hot(y, C).bool(),
}


@pytest.mark.parametrize("form", FORMS)
def test_class_labels_may_be(form):
    expected = margin(LOGITS, CLASSES)
    assert torch.equal(output("image_classification", LOGITS, FORMS[form](CLASSES)), expected)
    found = output("token_classification", TOKEN_LOGITS, FORMS[form](TOKENS), level="sequence")
    assert torch.equal(found, margin(TOKEN_LOGITS, TOKENS).sum(1))


@pytest.mark.parametrize("form", FORMS)
def test_weighted_losses_read_labels_in_the_same_form(form):
    settings = {"name": "image_classification", "class_weight": [1.0, 5.0, 10.0]}
    task, logits = registry.create("tasks", settings), LOGITS.clone().requires_grad_()
    batch = (torch.zeros(B), FORMS[form](CLASSES))
    found = task.output(lambda inputs: logits, batch)
    (ours,) = torch.autograd.grad(
        (task.loss_weight(lambda inputs: logits, batch, found.detach()) * found).sum(), logits
    )
    weight = torch.tensor([1.0, 5.0, 10.0], dtype=torch.float64)
    (theirs,) = torch.autograd.grad(cross_entropy(logits, CLASSES, weight=weight, reduction="sum"), logits)
    torch.testing.assert_close(ours, -theirs)


def test_flags_are_labels_of_two_classes():
    flags = CLASSES > 1
    assert torch.equal(output("image_classification", LOGITS[:, :2], flags), margin(LOGITS[:, :2], flags.long()))


def test_labels_are_read_under_vmap_too():
    def one(logits, label):
        task = registry.create("tasks", "image_classification")
        return task.output(lambda inputs: logits.unsqueeze(0), (torch.zeros(1), label.unsqueeze(0)))[0]

    for labels in (CLASSES.to(torch.uint8), one_hot(CLASSES, C)):
        assert torch.equal(torch.func.vmap(one)(LOGITS, labels), margin(LOGITS, CLASSES))
    assert torch.func.vmap(one)(LOGITS, torch.full((B, C), 1 / 3)).isnan().all(), "soft labels are no classes"


@pytest.mark.parametrize(
    ("name", "logits", "labels", "message"),
    [
        ("image_classification", LOGITS, torch.rand(B, C).softmax(1), "not one-hot at position .0,.*mixup.*task loss"),
        ("image_classification", LOGITS, torch.ones(B, C), "several labels per sample, use task multilabel"),
        ("image_classification", LOGITS, CLASSES.float(), r"\.long\(\).*regression.*The task is image_classification"),
        ("image_classification", LOGITS[:, :1], CLASSES, r"task binary_classification"),
        (
            "image_classification",
            LOGITS[:, 0],
            CLASSES,
            r"\(4,\)\. .*binary_classification; .*regression.*The task is image_classification",
        ),
        ("image_classification", TOKEN_LOGITS, CLASSES, "task token_classification"),
        ("image_classification", torch.randn(B, C, 2, 2), CLASSES, "task segmentation"),
        ("token_classification", torch.randn(B, C, 2, 2), CLASSES, "task segmentation"),
        ("binary_classification", LOGITS[:, 0], torch.full((B,), 0.3), "soft labels.*binary_cross_entropy_with_logits"),
        ("multilabel", LOGITS[:, 0], CLASSES > 1, "task binary_classification"),
        ("segmentation", torch.randn(B, C, 2, 2), torch.zeros(B, 4, 4), "resize the logits"),
        ("segmentation", torch.randn(B, 1, 2, 2), torch.zeros(B, 2, 2), "one logit per pixel.*multilabel"),
        ("segmentation", torch.randn(B, 2, 2, C), torch.zeros(B, 2, 2, dtype=torch.long), "if classes come last"),
        ("segmentation", torch.randn(B, C, 2, 2), torch.full((B, 2, 2), 255), "label 255 is out of range"),
    ],
)
def test_other_labels_are_refused_with_a_way_that_works(name, logits, labels, message):
    with pytest.raises(DataError, match=message):
        output(name, logits, labels)


PIXELS = torch.arange(B * 6).reshape(B, 2, 3) % C
PIXELS[1, 0, :2] = 255
PIXEL_LOGITS = torch.randn(B, C, 2, 3, dtype=torch.float64)


def test_masks_are_the_labels_of_segmentation_only():
    images, masks = torch.randn(B, 3, 2, 2), torch.randint(3, (B, 2, 2))
    batch = {"image": images, "mask": masks}
    found = registry.create("tasks", "segmentation").output(nn.Conv2d(3, 3, 1), batch)
    assert found.shape == (B,)
    with pytest.raises(DataError, match="no entry of the batch is called labels"):
        registry.create("tasks", "image_classification").output(nn.Flatten(), batch)


@pytest.mark.parametrize("settings", [{"reduction": "sum"}, {}, {"class_weight": [1.0, 2.0, 5.0]}])
def test_segmentation_has_the_gradient_of_the_loss_of_each_image(settings):
    task = registry.create("tasks", {"name": "segmentation", "ignore_index": 255, **settings})
    logits = PIXEL_LOGITS.clone().requires_grad_()
    weight = torch.tensor(settings.get("class_weight", [1.0] * C), dtype=torch.float64)
    losses = cross_entropy(logits, PIXELS, weight=weight, ignore_index=255, reduction="none").flatten(1).sum(1)
    if settings.get("reduction") != "sum":
        losses = losses / (PIXELS != 255).flatten(1).sum(1)
    (theirs,) = torch.autograd.grad(losses.sum(), logits)
    batch = (torch.zeros(B), PIXELS)
    found = task.output(lambda inputs: logits, batch)
    weights = task.loss_weight(lambda inputs: logits, batch, found.detach())
    (ours,) = torch.autograd.grad((weights * found).sum(), logits)
    torch.testing.assert_close(ours, -theirs)


def test_a_mask_with_some_wrong_pixels_pushes_these_and_not_the_right_ones():
    logits = torch.zeros(1, C, 100, dtype=torch.float64, requires_grad=True)
    confident = 5 * one_hot(torch.zeros(1, 100, dtype=torch.long), C).movedim(-1, 1)
    labels = (torch.arange(100) < 10).long().unsqueeze(0)  # 10 of 100 pixels are labeled wrongly
    task = registry.create("tasks", "segmentation")
    found = task.output(lambda inputs: logits + confident, (torch.zeros(1), labels))
    q = task.loss_weight(lambda inputs: logits + confident, (torch.zeros(1), labels), found.detach())
    (grad,) = torch.autograd.grad(q * found, logits)
    assert grad[0, 1, :10].sum() > 5 * grad[0, 0, 10:].sum() > 0


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (PIXEL_LOGITS, (PIXELS % C).to(torch.uint8)),
        (PIXEL_LOGITS, (PIXELS % C).unsqueeze(1)),
        (PIXEL_LOGITS, one_hot(PIXELS % C, C).movedim(-1, 1)),
        (PIXEL_LOGITS.flatten(2), (PIXELS % C).flatten(1)),
        (PIXEL_LOGITS.unsqueeze(2), (PIXELS % C).unsqueeze(1)),
    ],
)
def test_pixels_may_lie_in_one_two_or_three_dimensions(logits, labels):
    expected = margin(PIXEL_LOGITS.flatten(2).mT, (PIXELS % C).flatten(1)).mean(1)
    torch.testing.assert_close(output("segmentation", logits, labels, level="image"), expected)


def test_a_mask_of_one_logit_per_pixel_is_a_multilabel_problem():
    logits, mask = PIXEL_LOGITS[:, :1], (PIXELS % 2).unsqueeze(1).to(torch.uint8)
    found = output("multilabel", logits, mask, pos_weight=2.0, level="sample")
    torch.testing.assert_close(found, torch.where(mask == 1, logits, -logits).flatten(1).mean(1))


class Squeezed(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, inputs):
        return self.outputs[inputs].squeeze()


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(
    ("settings", "outputs", "labels"),
    [
        ({"name": "regression"}, torch.randn(B, 1), torch.randn(B)),
        ({"name": "regression", "component": 0}, torch.randn(B, 1), torch.randn(B)),
        ({"name": "regression", "component": 1}, torch.randn(B, 2), torch.randn(B, 2)),
        ({"name": "binary_classification"}, torch.randn(B, 1), CLASSES > 1),
        ({"name": "image_classification"}, torch.randn(B, C), CLASSES),
        ({"name": "image_classification", "label_smoothing": 0.1}, torch.randn(B, C), CLASSES),
        ({"name": "multilabel"}, torch.randn(B, C), one_hot(CLASSES, C)),
        ({"name": "token_classification"}, torch.randn(B, T, C), TOKENS),
        ({"name": "segmentation"}, torch.randn(B, C, 2, 3), PIXELS % C),
    ],
)
def test_a_single_sample_may_be_squeezed(settings, outputs, labels, told):
    task, model, samples = registry.create("tasks", settings), Squeezed(outputs), torch.arange(B)
    whole = task.output(model, (samples, labels))
    q, r = task.loss_weight_and_curvature(model, (samples, labels), whole)
    for i in range(B):
        one = (samples[i : i + 1], labels[i : i + 1])
        with batch_of(1) if told else nullcontext():
            alone = task.output(model, one)
            found = task.loss_weight_and_curvature(model, one, alone)
        torch.testing.assert_close(alone, whole[i : i + 1])
        torch.testing.assert_close(found, (q[i : i + 1], r[i : i + 1]))
