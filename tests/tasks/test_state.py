"""What a task records of its options is JSON, the same in every process, and different for different options."""

import functools
import json
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from trak_lightning import Task, registry
from trak_lightning.errors import SettingsError
from trak_lightning.tasks.state import to_json


def loss(model, batch, gamma=1.0):
    return model(batch)


def closed_over(gamma):
    def inner(model, batch):
        return gamma

    return inner


def calls_itself():
    def inner(model, batch):
        return inner

    return inner


class Focal:
    def __init__(self, gamma):
        self.gamma = gamma

    def __call__(self, model, batch):
        return self.gamma

    def method(self, model, batch):
        return self.gamma


@dataclass
class Options:
    weight: torch.Tensor
    size: tuple[int, int]


def frozen(value):
    layer = nn.Linear(1, 1).requires_grad_(False)
    layer.weight.fill_(value), layer.bias.fill_(0)
    return layer


SAME = {
    "a tensor and a list": (torch.tensor([1.0, 2.0]), [1.0, 2.0]),
    "an array and a tuple": (np.array([1, 2]), (1, 2)),
    "a NumPy scalar": (np.float32(0.5), 0.5),
    "a NumPy flag": (np.bool_(True), True),
    "what is no number": (torch.tensor([torch.nan, torch.inf]), ["nan", "inf"]),
    "a position as a key": ({1: np.int64(2)}, {"1": 2}),
    "a set": ({"b", "a"}, ["a", "b"]),
    "a dtype": (torch.float16, "torch.float16"),
    "a function": (loss, f"{__name__}.loss"),
    "a function of torch": (nn.functional.cross_entropy, "torch.nn.functional.cross_entropy"),
    "two equal partials": (functools.partial(loss, gamma=2.0), functools.partial(loss, gamma=2.0)),
    "two equal closures": (closed_over(2.0), closed_over(2.0)),
    "a function that calls itself": (calls_itself(), calls_itself()),
    "two equal frozen modules": (frozen(1.0), frozen(1.0)),
    "a module in training": (nn.Linear(2, 2), nn.Linear(2, 2)),
}
DIFFERENT = {
    "partials": (functools.partial(loss, gamma=1.0), functools.partial(loss, gamma=2.0)),
    "partials of arrays": (
        functools.partial(loss, gamma=torch.zeros(9999)),
        functools.partial(loss, gamma=torch.ones(9999)),
    ),
    "closures": (closed_over(0.0), closed_over(5.0)),
    "closures over closures": (closed_over(closed_over(0.0)), closed_over(closed_over(5.0))),
    "lambdas with defaults": tuple((lambda model, batch, gamma=gamma: gamma) for gamma in (1, 2)),
    "callable objects": (Focal(1), Focal(2)),
    "bound methods": (Focal(1).method, Focal(2).method),
    "criteria with weights": (nn.CrossEntropyLoss(torch.ones(2)), nn.CrossEntropyLoss(torch.zeros(2))),
    "criteria with options": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "frozen modules": (frozen(1.0), frozen(2.0)),
    "dataclasses": (Options(torch.ones(2), (1, 2)), Options(torch.ones(2), (1, 3))),
}


def recorded(value):
    found = to_json(value, "option")
    assert json.loads(json.dumps(found)) == found
    assert "0x" not in json.dumps(found)
    return found


@pytest.mark.parametrize("kind", SAME)
def test_equal_options_are_recorded_equally(kind):
    one, other = SAME[kind]
    assert recorded(one) == recorded(other)


@pytest.mark.parametrize("kind", DIFFERENT)
def test_different_options_are_recorded_differently(kind):
    one, other = DIFFERENT[kind]
    assert recorded(one) != recorded(other)


def test_another_process_records_the_same():
    code = f"import sys, json; sys.path.insert(0, {str(__file__.rpartition('/')[0])!r}); import test_state as t\n"
    code += "print(json.dumps({k: t.recorded(v[0]) for d in (t.SAME, t.DIFFERENT) for k, v in d.items()}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = {kind: recorded(pair[0]) for cases in (SAME, DIFFERENT) for kind, pair in cases.items()}
    assert json.loads(found) == json.loads(json.dumps(here).replace(f'"{__name__}.', '"test_state.'))


def task_with(**attributes):
    class Mine(Task):
        def __init__(self):
            vars(self).update(attributes)

        def output(self, model, batch):
            return model(batch)

    return Mine()


def test_what_cannot_be_recorded_names_the_attribute_and_the_way_out():
    with pytest.raises(SettingsError, match=r"Mine\.teacher is a object.*begins with '_'"):
        task_with(teacher=object()).state  # noqa: B018 (a property)


def test_a_method_with_other_arguments_is_refused():
    class Mine(Task):
        def output(self, model, batch): ...

        def loss_weight(self, output, batch): ...

    with pytest.raises(SettingsError, match=r"Define it as loss_weight\(self, model, batch, output\)"):
        Mine().state  # noqa: B018


@pytest.mark.parametrize("name", ["output", "curvature", "fit"])
def test_an_attribute_that_hides_a_method_is_refused(name):
    with pytest.raises(SettingsError, match=f"attribute '{name}', which hides its method"):
        task_with(**{name: [1.0]}).state  # noqa: B018


@pytest.mark.parametrize(
    ("name", "options", "plain"),
    [
        ("image_classification", {"class_weight": torch.tensor([1.0, 2.0])}, {"class_weight": [1.0, 2.0]}),
        ("image_classification", {"inputs": (0, 1), "labels": np.int64(2)}, {"inputs": [0, 1], "labels": 2}),
        ("binary_classification", {"pos_weight": torch.tensor([3.0])}, {"pos_weight": 3.0}),
        ("multilabel", {"pos_weight": np.ones(3)}, {"pos_weight": [1.0, 1.0, 1.0]}),
        ("token_classification", {"ignore_index": np.int64(255)}, {"ignore_index": 255}),
        ("regression", {"component": torch.tensor(1)}, {"component": 1}),
        ("regression", {"mean": torch.tensor(3.0), "std": np.ones(1)}, {"mean": 3}),
        (
            "contrastive",
            {"logit_scale": np.float64(4), "outputs": ("a", "b")},
            {"logit_scale": 4.0, "outputs": ["a", "b"]},
        ),
    ],
)
def test_built_in_tasks_take_options_as_torch_and_python_write_them(name, options, plain):
    found = registry.create("tasks", {"name": name, **options}).state
    assert found == registry.create("tasks", {"name": name, **plain}).state
    assert json.loads(json.dumps(found)) == found
