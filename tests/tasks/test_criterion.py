"""A loss that the module holds, and that is not the one of the task, is a warning that names both."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from trak_lightning import TRAK, registry
from trak_lightning.tasks.criterion import CriterionWarning, warn_of_criterion

W = torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("criterion", "task", "message"),
    [
        (nn.CrossEntropyLoss(), "image_classification", None),
        (nn.CrossEntropyLoss(2 * torch.ones(3)), "image_classification", None),
        (nn.CrossEntropyLoss(W), "image_classification", r"head.loss of Sequential .* weight=\[1, 2, 3\].*class_weight=None"),
        (nn.CrossEntropyLoss(W), {"name": "image_classification", "class_weight": [2, 4, 6]}, None),
        (nn.NLLLoss(W), {"name": "image_classification", "class_weight": [1, 1, 3]}, r"NLLLoss.*class_weight=\[1, 1, 3\]"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), "segmentation", "label_smoothing=0.1.*set its option label_smoothing"),
        (nn.CrossEntropyLoss(ignore_index=0), "token_classification", "ignore_index=0.*ignore_index=-100"),
        (nn.CrossEntropyLoss(ignore_index=0), "image_classification", "no option ignore_index: use task loss"),
        (nn.CrossEntropyLoss(W), "loss", None),
        (nn.BCEWithLogitsLoss(pos_weight=W), "multilabel", r"pos_weight=\[1, 2, 3\]"),
        (nn.BCEWithLogitsLoss(pos_weight=W), {"name": "multilabel", "pos_weight": [1, 2, 3]}, None),
        (nn.BCEWithLogitsLoss(pos_weight=W[1]), {"name": "binary_classification", "pos_weight": 2}, None),
        (nn.BCEWithLogitsLoss(pos_weight=W[1:2]), "binary_classification", "pos_weight=2.*pos_weight=1.0"),
        (nn.MSELoss(), "regression", None),
        (nn.HuberLoss(), "regression", "HuberLoss.*squared error.*use task loss"),
    ],
)  # fmt: skip
def test_options_that_the_task_was_not_told_of_are_named(criterion, task, message):
    model = nn.Sequential()
    model.add_module("head", nn.Module())
    model.head.loss = criterion
    with pytest.warns(CriterionWarning, match=message) if message else nullcontext():
        warn_of_criterion(registry.create("tasks", task), model)


def test_class_weights_are_those_of_the_checkpoint(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3))
    model.loss = nn.CrossEntropyLoss(torch.ones(3))
    model.forward = lambda x: model[0](x)
    trak = TRAK(model.eval(), "image_classification", tmp_path)
    with pytest.warns(CriterionWarning, match=r"weight=\[1, 2, 3\]"):
        trak.featurize(TensorDataset(torch.randn(4, 2), torch.arange(4) % 3), {**model.state_dict(), "loss.weight": W})


def test_a_model_is_warned_of_once_and_another_one_again():
    model, other = (nn.ModuleDict({"loss": nn.HuberLoss()}) for _ in range(2))
    task = registry.create("tasks", "regression")
    with pytest.warns(CriterionWarning) as found:
        [warn_of_criterion(task, each) for each in (model, model, other)]
    assert len(found) == 2
