"""Every task says in its own words what its number means, and a run directory remembers it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from trak_lightning import TRAK, Task, registry
from trak_lightning.run.meaning import Meaning
from trak_lightning.tasks.base import unstated_loss
from trak_lightning.tasks.regression import Regression


class Scaled(Regression):
    def targets(self, batch):
        return (super().targets(batch) - 300) / 80


WORDS = {
    "image_classification": ("log-odds of the label", "push towards the label", "p(label)"),
    "text_classification": ("log-odds of the label", "push towards the label", "p(label)"),
    "binary_classification": ("log-odds of the label", "push towards the label", "p(label)"),
    "multilabel": ("negative loss", "make the right answers more likely", "geometric mean p(answer)"),
    "token_classification": ("negative loss", "make the right tokens more likely", None),
    "causal_lm": (
        "sum of the log-odds of the target's tokens",
        "make the target's tokens more likely",
        "mean p(token)",
    ),
    "seq2seq_lm": (
        "sum of the log-odds of the target's tokens",
        "make the target's tokens more likely",
        "mean p(token)",
    ),
    "segmentation": (
        "negative loss",
        "make the labels of the pixels more likely",
        "geometric mean p(pixel)",
    ),
    "contrastive": ("margin of the pair over other pairs", "bring image and text closer together", "p(pair)"),
    "regression": ("prediction", "raise the prediction", None),
    "loss": ("negative loss", "lower the loss", None),
}


@pytest.mark.parametrize("name", WORDS)
def test_every_built_in_task_has_words_of_its_own(name):
    meaning = registry.create("tasks", name).meaning
    probability = meaning.probability_name if meaning.probability else None
    assert (meaning.output, meaning.raises, probability) == WORDS[name]


def test_the_words_of_a_task_of_your_own_follow_from_its_loss():
    class Margin(Task):
        def output(self, model, batch): ...

    class Sum(Margin):
        def loss_weight(self, model, batch, output): ...

    class Number(Margin):
        loss_function = "squared"

    assert Margin().meaning.probability == "output"
    assert Sum().meaning == Meaning(), "with a loss weight of its own, sigmoid(f) need not be a probability"
    assert Number().meaning.number


@pytest.mark.parametrize(
    ("stated", "warned"),
    [
        ({}, True),
        ({"loss_function": "logistic"}, False),
        ({"loss_function": "linear"}, False),
        ({"loss_weight": lambda self, model, batch, output: output}, False),
    ],
)
def test_a_task_that_says_nothing_of_its_loss_is_told_which_one_is_taken(stated, warned, caplog, tmp_path):
    Mine = type("Mine", (Task,), {"output": lambda self, model, batch: model(batch[0])[:, 0], **stated})
    trak = TRAK(nn.Linear(2, 1).eval(), type("Derived", (Mine,), {})(), tmp_path, projector="identity")
    trak.featurize(TensorDataset(torch.randn(9, 2)), checkpoints=[trak.model])
    assert ("q = 1 − sigmoid(f)" in caplog.text) is warned


@pytest.mark.parametrize("name", WORDS)
def test_every_built_in_task_says_what_its_loss_is(name):
    assert unstated_loss(registry.create("tasks", name)) is None


def test_errors_are_ranked_by_what_is_known():
    output, weight = np.array([-1.0, 0.0, 9.0]), np.array([0.2, 0.9, 0.5])
    assert Meaning(probability="loss_weight").errors(output, weight).argmax() == 1
    assert Meaning(probability="output").errors(output, weight).argmax() == 0
    assert Meaning(number=True).errors(output, -weight).argmax() == 1, "a residual counts by its size"
    assert Meaning().errors(output, -weight).argmax() == 1, "the slope of a loss of its own"
    assert Meaning().errors(output, np.ones(3)).argmax() == 0, "minus the loss"
    assert Meaning().error_name(np.ones(3)) == "minus the output"
    assert registry.create("tasks", "loss").meaning.error_name(np.ones(3)) == "loss"


@pytest.mark.parametrize(
    ("scaled", "task", "warned"),
    [
        (lambda y: y, Regression(), False),
        (lambda y: (y - 300) / 80, Regression(), True),
        (lambda y: y - 300, Regression(), True),
        (lambda y: y.log(), Regression(), True),
        (lambda y: (y - 300) / 80, Scaled(), False),
        (lambda y: (y - 300) / 80, Regression(mean=300, std=80), False),
    ],
    ids=["as they are", "standardized", "centered", "log", "and so by the task", "by its options"],
)
def test_labels_that_training_scaled_are_noticed(scaled, task, warned, caplog, tmp_path):
    x = torch.randn(60, 3)
    y = 300 + x @ torch.tensor([70.0, 30.0, 10.0]) + 10 * torch.randn(60)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(60, 1)], 1), scaled(y.clamp(min=9))[:, None]).solution[:, 0]
    model = nn.Linear(3, 1)
    model.load_state_dict({"weight": solution[None, :3], "bias": solution[3:]})
    trak = TRAK(model.eval(), task, tmp_path, projector="identity")
    trak.featurize(TensorDataset(x, y), checkpoints=[model])
    assert ("does training_step scale the labels" in caplog.text) is warned
    assert ("does training_step scale the labels" in str(trak.check(TensorDataset(x, y)))) is warned
    model.load_state_dict({"weight": torch.tensor([[-0.3, 0.7, 0.0]]), "bias": torch.zeros(1)})
    untrained = TRAK(model, Regression(), tmp_path / "untrained", projector="identity")
    assert "does training_step scale the labels" not in str(untrained.check(TensorDataset(x, y)))


def test_a_run_directory_remembers_the_words(tmp_path):
    trak = TRAK(nn.Linear(3, 1).eval(), task="regression", run_dir=tmp_path)
    assert trak.run.read().meaning == Meaning()
    trak.featurize(TensorDataset(torch.randn(8, 3), torch.randn(8)))
    assert trak.run.read().meaning == registry.create("tasks", "regression").meaning
