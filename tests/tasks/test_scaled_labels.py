"""A regression whose labels training standardizes has f, and all that follows, in the unit of the labels."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from trak_lightning import TRAK, Task
from trak_lightning.tasks.regression import Regression

MEAN, STD = 300.0, 80.0


def least_squares(x, y):
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y[:, None]).solution[:, 0]
    model = nn.Linear(x.shape[1], 1).double().eval()
    model.load_state_dict({"weight": solution[None, :-1], "bias": solution[-1:]})
    return model


def test_scores_and_removals_are_refits_in_the_unit_of_the_labels(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(60, 3, dtype=torch.float64)
    y = MEAN + x @ torch.tensor([70.0, 30.0, 10.0], dtype=torch.float64) + 40 * torch.randn(60, dtype=torch.float64)
    found = {}
    scaled = (y - MEAN) / STD
    for name, model, task, labels in (
        ("scaled", least_squares(x, scaled), Regression(mean=MEAN, std=STD), y),
        ("by the dataset", least_squares(x, scaled), Regression(mean=MEAN, std=STD, labels_are="scaled"), scaled),
        ("absorbed", least_squares(x, y), Regression(), y),
    ):
        trak = TRAK(model, task, tmp_path / name, projector="identity")
        trak.featurize(TensorDataset(x, labels))
        scorer = {"name": "influence", "regularization": 1e-9}
        scores = trak.score(TensorDataset(x[:5], labels[:5]), "test", scorer=scorer)
        assert [float(scores.samples[1].show(i).label) for i in range(5)] == pytest.approx(y[:5].tolist(), 1e-3)
        found[name] = scores.values, [scores.outputs(i)["output"] for i in range(5)]
        changes = trak.what_if("test", regularization=1e-9).remove([0]).change
        left = least_squares(x[1:], y[1:])
        refit = (left(x[:5]) - least_squares(x, y)(x[:5])).detach()[:, 0]
        np.testing.assert_allclose(changes, refit, rtol=2e-3)
    for *of_scaled, absorbed in zip(*found.values(), strict=True):
        for each in of_scaled:
            np.testing.assert_allclose(each, absorbed, rtol=1e-3, atol=1e-4)
    design = torch.cat([x, torch.ones(60, 1)], 1)
    residual = y - least_squares(x, y)(x).detach()[:, 0]
    step = design[:5] @ torch.linalg.inv(design.T @ design) @ (design * residual[:, None]).T
    np.testing.assert_allclose(found["scaled"][0], step, rtol=1e-3, atol=1e-3)


class OwnTask(Task):
    loss_function = "squared"

    def output(self, model, batch):
        return model(batch[0])[:, 0]

    def loss_weight(self, model, batch, output):
        return (batch[1] - MEAN) / STD - output


class ScaledInTargets(Regression):
    def targets(self, batch):
        return (super().targets(batch) - MEAN) / STD


@pytest.mark.parametrize("task", [OwnTask(), ScaledInTargets()], ids=["loss weight", "targets"])
@pytest.mark.parametrize("render", [None, lambda sample: {"x": sample[0], "label": float(sample[1])}])
def test_the_label_next_to_a_prediction_is_what_the_task_compares_it_with(task, render, tmp_path):
    x, y = torch.randn(20, 3), MEAN + STD * torch.linspace(-2, 2, 20)
    trak = TRAK(nn.Linear(3, 1).eval(), task, tmp_path, projector="identity")
    trak.featurize(TensorDataset(x, y))
    scores = trak.score(TensorDataset(x[:5], y[:5]), "test", render=render)
    assert [float(scores.samples[1].show(i).label) for i in range(5)] == pytest.approx(np.linspace(-2, 2, 20)[:5], 1e-3)
    frame = scores.to_frame(2)
    label = dict(enumerate(np.linspace(-2, 2, 20)))
    assert trak.where("label>1", render=render).tolist() == [i for i in range(20) if label[i] > 1]
    for side in ("train", "target"):
        assert frame[f"{side}_label"].astype(float).tolist() == pytest.approx([label[i] for i in frame[side]], 1e-3)


def test_options_that_change_nothing_are_not_recorded_and_do_not_touch_those_of_a_subclass():
    class Own(Regression):
        def __init__(self, mean, std):
            super().__init__()
            self.mean, self.std = mean, std

        def targets(self, batch):
            return (super().targets(batch) - self.mean) / self.std

    assert Regression(mean=0, std=1).state.keys() == {"class", "inputs", "labels", "outputs", "component"}
    assert Regression(std=2).state["std"] == 2
    batch, own = (torch.zeros(2), torch.tensor([5.0, 7.0])), Own(5.0, 2.0)
    assert (own.state["mean"], own.state["std"]) == (5, 2)
    output = own.output(lambda inputs: torch.tensor([0.5, 0.5]), batch)
    assert own.loss_weight(None, batch, output).tolist() == [-0.5, 0.5]
