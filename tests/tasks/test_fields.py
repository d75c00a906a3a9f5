"""Inputs and labels are found in whatever a collate function returns, or the error says what was seen and what to name."""

import inspect
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding
from transformers.modeling_outputs import SequenceClassifierOutput

from trak_lightning import TRAK, registry
from trak_lightning.data.samples import SampleBatch, take_sample
from trak_lightning.errors import DataError
from trak_lightning.extractors.hooks import Hooks
from trak_lightning.gradients import ParameterLayout
from trak_lightning.tasks.base import batch_of
from trak_lightning.tasks.margin import margin

IDS = torch.tensor([[1, 2, 3], [4, 5, 0]])
MASK = (IDS > 0).long()
LABELS = torch.tensor([2, 0])


class Encoder(nn.Module):
    """Called as the models of transformers are, by name or with the ids alone."""

    def __init__(self, wrap=lambda logits: logits):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(6, 4), nn.Linear(4, 3)
        self.wrap = wrap

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None):
        mask = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).unsqueeze(-1)
        return self.wrap(self.head((self.embedding(input_ids) * mask).sum(1)))


@dataclass
class Question:
    input_ids: Tensor
    attention_mask: Tensor
    label: Tensor
    text: list[str]


class Graphs:
    """A batch that is an object of a class of its own."""

    def __init__(self):
        self.x, self.mask, self.y = IDS, MASK, LABELS


Named = namedtuple("Named", ["input_ids", "attention_mask", "labels"])
BATCHES = {
    "a dict": ({}, {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}),
    "a dict with strings": ({}, {"text": ["a", "b"], "input_ids": IDS, "attention_mask": MASK, "label": LABELS}),
    "a BatchEncoding": ({}, BatchEncoding({"input_ids": IDS, "attention_mask": MASK, "labels": LABELS})),
    "a pair of a BatchEncoding and labels": ({}, (BatchEncoding({"input_ids": IDS, "attention_mask": MASK}), LABELS)),
    "a dataclass": ({}, Question(IDS, MASK, LABELS, ["a", "b"])),
    "a named tuple": ({}, Named(IDS, MASK, LABELS)),
    "a tuple, by position": ({"inputs": [0, 1], "labels": 3}, (IDS, MASK, "idx", LABELS)),
    "an index next to the tokens": ({}, {"input_ids": IDS, "attention_mask": MASK, "idx": MASK, "labels": LABELS}),
    "other names": (
        {"inputs": {"input_ids": "ids", "attention_mask": "mask"}, "labels": "class"},
        {"ids": IDS, "mask": MASK, "class": LABELS, "idx": torch.tensor([7, 8])},
    ),
    "labels of several tasks": (
        {"labels": "labels.kind"},
        {"input_ids": IDS, "attention_mask": MASK, "labels": {"age": MASK, "kind": LABELS}},
    ),
    "a pair with labels of several tasks": (
        {"inputs": {"input_ids": "0.ids", "attention_mask": "0.mask"}, "labels": "1.kind"},
        ({"ids": IDS, "mask": MASK}, {"kind": LABELS}),
    ),
    "more than is wanted": (
        {"inputs": ["input_ids", "attention_mask"]},
        {"input_ids": IDS, "attention_mask": MASK, "idx": torch.tensor([7, 8]), "labels": LABELS},
    ),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_inputs_and_labels_are_found_in_batches_of_every_kind(kind):
    settings, batch = BATCHES[kind]
    task = registry.create("tasks", {"name": "text_classification", **settings})
    model = Encoder()
    expected = margin(model(IDS, MASK), LABELS)
    assert torch.equal(task.output(model, batch), expected)
    assert torch.equal(task.output(model, take_sample(batch, 1, 2)), expected[1:])
    rows: list[str] = []
    Hooks().extract(
        model, task, SampleBatch.of_rows(batch, 2), ParameterLayout.of(model), lambda block: rows.append(block.name)
    )
    assert "head.weight" in rows


@pytest.mark.parametrize(
    "images",
    [
        (IDS, LABELS),
        [IDS, LABELS],
        {"image": IDS, "label": LABELS},
        {"pixel_values": IDS, "labels": LABELS},
        {"anything": IDS, "label": LABELS},
    ],
)
def test_images_are_found_under_their_usual_names(images):
    model = Encoder()
    assert torch.equal(
        registry.create("tasks", "image_classification").output(model, images), margin(model(IDS), LABELS)
    )


def one(x):
    return x


def two(x, meta):
    return x + meta


def by_name(image, meta):
    return image + 2 * meta


def any_order(meta, image):
    return image + 2 * meta


def with_a_flag(x, return_features=False):
    assert not return_features
    return x


def of_a_tuple(views):
    return views[0] - views[1]


def optional(x, meta=None):
    return x if meta is None else x + meta


class Of(nn.Module):
    """A model with the arguments of `function`, which puts them together."""

    def __init__(self, function):
        super().__init__()
        self.head = nn.Linear(4, 3)
        forward = lambda *args, **kwargs: self.head(function(*args, **kwargs))  # noqa: E731
        forward.__signature__ = inspect.signature(function)
        self.forward = forward


IMAGE, META = torch.randn(2, 4), torch.randn(2, 4)
CALLS = [
    (one, {"image": IMAGE, "index": MASK}, IMAGE),
    (two, {"image": IMAGE, "meta": META}, IMAGE + META),
    (two, {"meta": META, "image": IMAGE, "index": MASK}, IMAGE + META),
    (by_name, {"image": IMAGE, "meta": META}, IMAGE + 2 * META),
    (any_order, {"image": IMAGE, "meta": META, "index": MASK}, IMAGE + 2 * META),
    (with_a_flag, {"image": IMAGE, "index": MASK}, IMAGE),
    (optional, {"image": IMAGE, "meta": META}, IMAGE + META),
    (two, (IMAGE, META), IMAGE + META),
    (two, [IMAGE, META], IMAGE + META),
    (optional, (IMAGE, META), IMAGE + META),
    (of_a_tuple, (IMAGE, META), IMAGE - META),
    (one, (IMAGE,), IMAGE),
]


@pytest.mark.parametrize(("function", "inputs", "expected"), CALLS)
@pytest.mark.parametrize("layout", ["flat", "pair"])
@pytest.mark.parametrize("stands_in", [False, True])
def test_no_input_is_lost_between_the_batch_and_the_model(function, inputs, expected, layout, stands_in):
    model = Of(function)
    if isinstance(inputs, dict) and layout == "flat":
        batch = {**inputs, "label": LABELS}
    else:
        batch = (inputs[0] if function is one and isinstance(inputs, tuple) else inputs, LABELS)
    called = (lambda *args, **kwargs: model(*args, **kwargs)) if stands_in else model
    found = registry.create("tasks", "image_classification").output(called, batch)
    assert torch.equal(found, margin(model.head(expected), LABELS))


def test_an_input_that_may_be_any_argument_must_be_named():
    batch = {"image": IMAGE, "metadata": META, "label": LABELS}
    with pytest.raises(
        DataError, match=r"takes x, meta, and the batch holds image, metadata: .*inputs: {x: …, meta: …}"
    ):
        registry.create("tasks", "image_classification").output(Of(optional), batch)
    settings = {"name": "image_classification", "inputs": {"x": "image", "meta": "metadata"}}
    model = Of(optional)
    found = registry.create("tasks", settings).output(model, batch)
    assert torch.equal(found, margin(model.head(IMAGE + META), LABELS))


@pytest.mark.parametrize("inputs", [(IMAGE,), IMAGE])
def test_arguments_that_the_model_misses_are_named_and_the_task_as_well(inputs):
    with pytest.raises(
        DataError, match=r"takes x, meta, .*inputs: {x: …, meta: …}.*contrastive.*The task is image_classification"
    ):
        registry.create("tasks", "image_classification").output(Of(two), (inputs, LABELS))


@pytest.mark.parametrize(
    ("settings", "wrap"),
    [
        ({}, lambda logits: SequenceClassifierOutput(logits=logits)),
        ({}, lambda logits: {"logits": logits}),
        ({}, lambda logits: (logits, "hidden states")),
        ({"outputs": "scores"}, lambda logits: {"scores": logits, "logits": 2 * logits}),
        ({"outputs": 1}, lambda logits: (2 * logits, logits)),
    ],
)
def test_predictions_are_found_in_what_a_model_returns(settings, wrap):
    task = registry.create("tasks", {"name": "text_classification", **settings})
    assert torch.equal(task.output(Encoder(wrap), (IDS, LABELS)), margin(Encoder()(IDS), LABELS))


@pytest.mark.parametrize(
    ("settings", "batch", "message"),
    [
        (
            {},
            {"input_ids": IDS, "class": LABELS},
            r"labels, label, .*; it is a dict with input_ids int64 .2, 3., class int64 .2,..*labels: …",
        ),
        (
            {"labels": "klass"},
            {"input_ids": IDS, "class": LABELS},
            "no entry 'klass' .labels.; .*input_ids int64 .*, class int64",
        ),
        ({"labels": "labels"}, (IDS, LABELS), "no entry 'labels'.*a tuple of length 2"),
        ({"inputs": 0, "labels": 2}, (IDS, LABELS), "no position 2 .labels."),
        (
            {"inputs": ["ids"]},
            {"input_ids": IDS, "label": LABELS},
            "no entry 'ids' .inputs.; .*input_ids int64 .*, label int64",
        ),
        (
            {},
            (IDS, LABELS, MASK),
            "a tuple of length 3: 0 int64 .*, 1 int64 .*, 2 .*, where a pair .*inputs: 0, labels: 1",
        ),
        ({}, IDS, "the batch is a Tensor, where a pair"),
        ({}, {"label": LABELS}, "no tensor in addition to the labels"),
        ({}, {"text": ["a", "b"], "label": LABELS}, r"A model takes tokens, not text: .*tokenizer\(rows\['text'\]"),
        (
            {},
            {"ids": IDS, "idx": MASK, "label": LABELS},
            r"does not take 'ids'.*whole batch as one argument, write inputs: '\*'",
        ),
        ({"outputs": "scores"}, (IDS, LABELS), "the model's output has no entry 'scores' .outputs.; it is a Tensor"),
        ({}, (IDS, torch.tensor([2, 3])), "label 3 is out of range: the model returns 3 logits.*sample 1 of the batch"),
        ({}, (IDS, LABELS.float()), "labels must be integers of shape"),
        ({}, (IDS, [2, 0]), "labels must be a tensor, got a list of length 2. Return tensors"),
        (
            {"labels": "labels.age"},
            {"ids": IDS, "labels": {"kind": LABELS}},
            "labels of the batch has no entry 'age'.*with kind",
        ),
        (
            {"labels": "y"},
            [Graphs(), Graphs(), Graphs()],
            "of length 3 of Graphs objects. No setting.*function .model, batch. → loss",
        ),
        ({"labels": "y"}, Graphs(), r"labels are named, but not inputs.*inputs: '\*', labels: y"),
        (
            {},
            (IDS, {"kind": LABELS}),
            r"labels must be a tensor, got a dict with kind int64 \(2,\)\. .*labels: 1\.kind, outputs: .*task: {name: loss",
        ),
        (
            {},
            Graphs(),
            r"a Graphs with attributes x int64 .*, mask .*, y int64 .*, where a pair .*Name the attribute that holds the labels.*inputs: '\*', labels: y",
        ),
        (
            {"inputs": "x", "labels": "z"},
            Graphs(),
            "no entry 'z' .labels.; it is a Graphs with attributes x int64 .*, mask .*, y int64",
        ),
    ],
)
def test_what_is_not_there_is_said_with_what_is(settings, batch, message):
    task = registry.create("tasks", {"name": "text_classification", **settings})
    with pytest.raises(DataError, match=message):
        task.output(Encoder(), batch)


ROWS, KINDS, NUMBERS = torch.randn(5, 3), torch.zeros(5, 2, dtype=torch.long), torch.arange(5)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"num": ROWS, "cat": KINDS, "churned": NUMBERS},
            r"num float32 \(5, 3\), .*One number per sample is in churned\. .*labels: churned}, or --task.labels churned; in Python task={\"name\": …, \"labels\": \"churned\"}",
        ),
        ({"x": ROWS, "index": NUMBERS, "y": NUMBERS}, r"in index and y\. Say which .*labels: y}"),
        ({"x": torch.randn(9, 3), "of": torch.arange(9), "y": NUMBERS}, r"in y\. Say .*--task\.labels y"),
        ((ROWS, KINDS, NUMBERS), r"inputs: \[0, 1\], labels: 2}, or --task.inputs '\[0, 1\]' --task.labels 2"),
        ((NUMBERS, ROWS, KINDS), r"inputs: \[1, 2\], labels: 0}"),
        (SimpleNamespace(x=ROWS, label_of=NUMBERS), r"--task.inputs '\*' --task.labels label_of"),
        ({"x": ROWS, "cat": KINDS}, r"cat int64 \(5, 2\)\. Say which holds the labels: task: {name: …, labels: …}"),
    ],
)
def test_entries_with_one_number_per_sample_are_proposed_as_labels(batch, message):
    with pytest.raises(DataError, match=message), batch_of(5):
        registry.create("tasks", "image_classification").output(Encoder(), batch)


def test_the_arguments_of_a_model_are_named_where_it_is_called_with_others():
    batch = {"num": ROWS, "index": NUMBERS, "label": NUMBERS}
    model = Of(lambda num, cat=None: num)
    with pytest.raises(DataError, match=r"does not take 'index'.*; it takes num, cat\. .*inputs: \[num\]}"):
        registry.create("tasks", "regression").output(model, batch)


def test_a_model_that_is_called_with_one_attribute_and_takes_the_whole_batch_is_told_so():
    task = registry.create("tasks", {"name": "text_classification", "inputs": "x", "labels": "y"})
    with pytest.raises(DataError, match=r"'Tensor' object has no attribute 'mask'.*write inputs: '\*'"):
        task.output(lambda data: data.mask, Graphs())
    with pytest.raises(AttributeError, match="nothing_of_the_batch"):  # a fault of the model's own
        task.output(lambda data: data.nothing_of_the_batch, Graphs())


def test_a_list_of_inputs_reaches_the_model_as_a_list():
    task = registry.create("tasks", "text_classification")
    expected = task.output(Encoder(), (IDS, LABELS))
    model = Encoder()
    found = task.output(lambda ids: model(torch.stack(ids)) if isinstance(ids, list) else None, ([*IDS], LABELS))
    assert torch.equal(found, expected)


def test_the_attributes_of_a_batch_that_is_an_object_are_found_by_name(tmp_path):
    def collate(samples):
        batch = Graphs()
        batch.x, batch.mask, batch.y = map(torch.stack, zip(*samples, strict=True))
        return batch

    model, data = Encoder().eval(), TensorDataset(IDS, MASK, LABELS)
    rows = []
    for inputs, labels, loader in (
        ({"input_ids": "x", "attention_mask": "mask"}, "y", DataLoader(data, 2, collate_fn=collate)),
        ([0, 1], 2, data),
    ):
        task = {"name": "text_classification", "inputs": inputs, "labels": labels}
        trak = TRAK(model, task, tmp_path / str(labels), projector="identity")
        trak.featurize(loader, checkpoints=[model])
        rows.append(trak.features()[:])
    np.testing.assert_array_equal(*rows)


def test_an_error_of_the_model_itself_is_left_alone():
    def model(*args, **kwargs):
        raise TypeError("unexpected keyword argument 'width'")

    with pytest.raises(TypeError, match="width"):
        registry.create("tasks", "text_classification").output(model, BATCHES["a dict"][1])
