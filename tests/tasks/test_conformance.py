"""Built-in tasks obey the laws, and a task that breaks one is found out."""

from functools import partial

import pytest
import torch
from hugging_face import VOCABULARY, bert
from torch import nn
from transformers import BatchEncoding

from trak_lightning import Task, registry
from trak_lightning.errors import SettingsError
from trak_lightning.run.meaning import Meaning
from trak_lightning.tasks.classification import ImageClassification
from trak_lightning.testing import TaskConformance


def of_label(logits, labels):
    """Softmax probabilities of the labels."""
    return logits.softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)


class TestImageClassification(TaskConformance):
    task = ImageClassification

    def model(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))

    def batch(self, size):
        return torch.randn(size, 2, 4), torch.randint(3, (size,))

    def probability(self, model, batch):
        return of_label(model(batch[0]), batch[1])


class Tagger(nn.Module):
    """Logits (B, T, 3) under a name, as models of transformers return them."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 6), nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask):
        hidden = self.embedding(input_ids) * attention_mask.unsqueeze(-1)
        return {"logits": self.head(hidden.cumsum(1).tanh())}


class TestTextClassification(TaskConformance):
    task = staticmethod(partial(registry.create, "tasks", "text_classification"))

    model = staticmethod(bert)

    def batch(self, size):
        ids = torch.randint(1, VOCABULARY, (size, 5))
        return BatchEncoding({"input_ids": ids, "attention_mask": ids > 3, "labels": torch.randint(3, (size,))})


class TestTokenClassificationOfSequences(TaskConformance):
    task = staticmethod(partial(registry.create, "tasks", {"name": "token_classification", "level": "sequence"}))
    exact_loss = False

    def model(self):
        return Tagger()

    def batch(self, size):
        ids, labels = torch.randint(9, (size, 5)), torch.randint(3, (size, 5))
        return {"input_ids": ids, "attention_mask": ids > 2, "labels": labels.masked_fill(ids < 3, -100)}

    def probability(self, model, batch):
        counted = batch["labels"] != -100
        p = of_label(model(batch["input_ids"], batch["attention_mask"])["logits"], batch["labels"])
        return (p * counted).sum(1) / counted.sum(1).clamp(min=1)


class TestTokenClassification(TestTokenClassificationOfSequences):
    task = staticmethod(partial(registry.create, "tasks", {"name": "token_classification", "reduction": "mean"}))

    def probability(self, model, batch):
        counted = batch["labels"] != -100
        p = of_label(model(batch["input_ids"], batch["attention_mask"])["logits"], batch["labels"])
        return ((p.log() * counted).sum(1) / counted.sum(1).clamp(min=1)).exp()


class TestBinaryClassification(TaskConformance):
    task = staticmethod(partial(registry.create, "tasks", {"name": "binary_classification", "pos_weight": 3.0}))

    def model(self):
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def batch(self, size):
        return torch.randn(size, 3), torch.randint(2, (size,))

    def probability(self, model, batch):
        p = model(batch[0])[:, 0].sigmoid()
        return torch.where(batch[1] == 1, p, 1 - p)

    def loss(self, task, model, batch, output):
        return torch.where(batch[1] == 1, 3, 1) * super().loss(task, model, batch, output)


class TestMultilabel(TaskConformance):
    task = staticmethod(partial(registry.create, "tasks", "multilabel"))

    def model(self):
        return nn.Linear(3, 4)

    def batch(self, size):
        return torch.randn(size, 3), torch.randint(2, (size, 4))

    def probability(self, model, batch):
        p = model(batch[0]).sigmoid()
        return torch.where(batch[1] == 1, p, 1 - p).log().mean(1).exp()

    def loss(self, task, model, batch, output):
        return -output


class TestMultilabelOfSamples(TestMultilabel):
    task = staticmethod(partial(registry.create, "tasks", {"name": "multilabel", "level": "sample"}))
    exact_loss = False

    def probability(self, model, batch):
        p = model(batch[0]).sigmoid()
        return torch.where(batch[1] == 1, p, 1 - p).mean(1)


class TestMultilabelWithWeights(TestMultilabel):
    task = staticmethod(partial(registry.create, "tasks", {"name": "multilabel", "pos_weight": 2.0}))

    def probability(self, model, batch):
        """Unknown: q is no longer 1 − p."""


class TestRegression(TaskConformance):
    task = staticmethod(partial(registry.create, "tasks", "regression"))

    def model(self):
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def batch(self, size):
        return torch.randn(size, 3), torch.randn(size)


class SquaredError(Task):
    """Right: f is the prediction, ℓ = (y − f)²/2."""

    loss_function = "squared"

    def output(self, model, batch):
        return model(batch[0])[:, 0]

    def loss_weight(self, model, batch, output):
        return batch[1] - output


class MinusTheLoss(Task):
    """Right: ℓ = −f; the form of the loss says all else."""

    loss_function = "linear"

    def output(self, model, batch):
        return -(model(batch[0])[:, 0] - batch[1]).abs()


class RegressionConformance(TaskConformance):
    def model(self):
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def batch(self, size):
        return torch.randn(size, 3), torch.randn(size)


class Poisson(SquaredError):
    """Right: f is the log of the rate; a loss of another form, whose `meaning` is its own."""

    loss_function = "logistic"
    meaning = Meaning("log of the rate", "raise the rate", "lower the rate")

    def loss_weight(self, model, batch, output):
        return batch[1] - output.exp()

    def curvature(self, model, batch, output):
        return output.exp()


class TestPoisson(RegressionConformance):
    task = Poisson

    def loss(self, task, model, batch, output):
        return output.exp() - batch[1] * output


class TestMinusTheLoss(RegressionConformance):
    task = MinusTheLoss


def test_a_squared_loss_must_say_what_is_predicted():
    class Squared(MinusTheLoss):
        loss_function = "squared"

    with pytest.raises(SettingsError, match="no method loss_weight: override it to return y − output"):
        Squared().loss_weight(None, None, torch.zeros(2))


def test_a_loss_function_that_is_not_known_is_refused_by_name():
    class Unknown(Poisson):
        loss_function = "poisson"

    with pytest.raises(SettingsError, match="must be one of logistic, squared, linear, got 'poisson'.*override"):
        _ = Unknown().state


class TestSquaredError(RegressionConformance):
    task = SquaredError


class CentresTheBatch(SquaredError):
    def output(self, model, batch):
        output = super().output(model, batch)
        return output - output.mean()


class Column(SquaredError):
    def output(self, model, batch):
        return model(batch[0])


class DropsOut(SquaredError):
    def output(self, model, batch):
        return nn.functional.dropout(super().output(model, batch), 0.5)


class WrongSign(SquaredError):
    def loss_weight(self, model, batch, output):
        return output - batch[1]


class ForgetsTheCurvature(SquaredError):
    loss_function = "logistic"


class ReadsParameters(SquaredError):
    def output(self, model, batch):
        return super().output(model, batch) + next(iter(model.parameters())).sum()


class Detaches(SquaredError):
    def output(self, model, batch):
        return super().output(model, batch).detach().requires_grad_()


class KeepsState(SquaredError):
    def output(self, model, batch):
        self.calls = getattr(self, "calls", 0) + 1
        return super().output(model, batch)


class SaysNothing(SquaredError):
    meaning = Meaning("prediction", "", "")


@pytest.mark.parametrize(
    ("wrong", "law"),
    [
        (CentresTheBatch, "test_an_output_depends_on_its_own_sample_only"),
        (Column, "test_there_is_one_finite_output_per_sample"),
        (DropsOut, "test_an_output_does_not_depend_on_chance"),
        (WrongSign, "test_loss_weight_and_curvature_are_the_slope_and_curvature_of_the_loss"),
        (ForgetsTheCurvature, "test_loss_weight_and_curvature_are_the_slope_and_curvature_of_the_loss"),
        (ReadsParameters, "test_a_stand_in_for_the_model_will_do"),
        (Detaches, "test_the_output_is_differentiable_in_the_parameters"),
        (KeepsState, "test_its_state_is_json_and_does_not_change_by_use"),
        (SaysNothing, "test_the_probability_that_its_meaning_promises_is_that_of_the_model"),
    ],
)
def test_a_wrong_task_fails_the_law_that_it_breaks(wrong, law):
    tests = RegressionConformance()
    torch.manual_seed(0)
    problem = wrong(), tests.model().double().eval(), (torch.randn(4, 3).double(), torch.randn(4).double())
    type(tests).task = wrong
    with pytest.raises((AssertionError, AttributeError)):
        getattr(tests, law)(problem)
