"""`trak check`: one batch tells what would be attributed to, or why it cannot be."""

import re

import pytest
import torch
import yaml
from faults import trak
from torch import nn
from torch.nn import functional as F

from trak_lightning import TRAK
from trak_lightning.cli import main
from trak_lightning.errors import DataError, NonFiniteGradientError, SampleDependenceError, TrainModeError


def check(model, data, tmp_path, **options):
    options = {"task": "image_classification", "store": "memory", **options}
    return TRAK(model, run_dir=tmp_path, **options).check(data, batch_size=16)


def test_every_parameter_is_accounted_for_and_nothing_is_stored(model, train_set, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = check(model, train_set, tmp_path / "run")
    lines = [f"{finding.topic}: {finding.text}" for finding in found]
    assert any("Linear" in line and "2 layers" in line and "83 parameters" in line for line in lines)
    assert any("p = 83 of the model's 83, in 4 tensors" in line for line in lines)
    assert any("16 samples, all finite" in line for line in lines)
    assert any("samples: independent" in line for line in lines)
    assert [finding.topic for finding in found[-3:]] == ["time", "memory", "disk"]
    assert not list(tmp_path.rglob("*"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_is_not_taken_apart_is_no_layer(model, train_set, tmp_path):
    lines = [
        each.text for each in check(model, train_set, tmp_path, extractor="iterative") if each.topic == "parameters"
    ]
    assert lines[0].split() == ["iterative", "whole", "model", "83", "parameters"]


def test_checkpoints_are_counted_and_the_weights_of_the_first_are_used(model, train_set, checkpoints, tmp_path):
    before = model[0].weight.clone()
    trak = TRAK(model, "image_classification", tmp_path / "run", store="memory")
    found = {each.topic: each.text for each in trak.check(train_set, checkpoints=checkpoints[:2])}
    assert re.search(r"× 2 checkpoints \+ \S+ \w+ to start = ", found["time"])
    assert torch.equal(model[0].weight, before)
    with pytest.raises(NonFiniteGradientError, match="parameter 0.weight"):
        trak.check(train_set, checkpoints={**model.state_dict(), "0.weight": before * torch.nan})


class BatchCentred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class AlwaysDrops(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)


@pytest.mark.parametrize("extractor", ["auto", "iterative"])
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (BatchCentred(), r"first module whose output for this sample differs is 1 \(BatchCentred\)"),
        (nn.BatchNorm1d(8, track_running_stats=False), r"no running statistics.*: 1 \(BatchNorm1d\)"),
        (AlwaysDrops(), r"output of 1 \(AlwaysDrops\) differs between two runs.*random numbers"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_module_that_mixes_samples_is_refused_by_name(layer, message, extractor, train_set, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), layer, nn.ReLU(), nn.Linear(8, 3)).eval()
    if extractor == "iterative" and isinstance(
        layer, BatchCentred
    ):  # what the model makes of samples alone is asked for
        assert check(model, train_set, tmp_path, extractor=extractor)
        return
    with pytest.raises(SampleDependenceError, match=message):
        check(model, train_set, tmp_path, extractor=extractor)


def test_code_that_mixes_samples_is_not_said_to_be_the_module_behind_it(train_set, tmp_path):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = self.body(x)
            return self.head(x - x.mean(0))

    with pytest.raises(
        SampleDependenceError, match=r"given to head \(Linear\) differs .* already: code before it mixes"
    ):
        check(Centred().eval(), train_set, tmp_path)


def test_modules_in_train_mode_and_outputs_that_are_not_finite_are_refused(model, train_set, tmp_path):
    model[2].train()
    with pytest.raises(TrainModeError, match=r"2 \(Dropout"):
        check(model, train_set, tmp_path)
    model.eval()[3].bias.data[0] = torch.inf
    with pytest.raises(NonFiniteGradientError, match="output of 16 of 16 samples"):
        check(model, train_set, tmp_path)


def test_the_command_prints_the_account_and_fails_when_featurizing_would(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls
    config = tmp_path / "config.yaml"
    settings = {
        "model": {"class_path": "trak_lightning.demos.DigitsCNN", "init_args": {"width": 4}},
        "data": {"class_path": "trak_lightning.demos.DigitsDataModule"},
        "trainer": {"accelerator": "cpu"},
        "run_dir": str(tmp_path / "run"),
        "parameters": ["type:Conv2d", "!*.bias"],
    }
    config.write_text(yaml.safe_dump(settings))
    done = trak("check", "--config", config)
    assert (done.returncode, done.stderr) == (0, "")
    assert "gradients  hooks: Conv2d ×2" in done.stdout
    assert "22 batches × 10 checkpoints" in done.stdout
    assert "for 13,970 rows of training samples; " in done.stdout
    assert main(["check", "--config", str(config), "--parameters", "conv.*"]) == 2
    assert "SettingsError: parameters: 'conv.*' matches nothing in DigitsCNN" in capsys.readouterr().err


class Segmenter(nn.Module):
    """A fresh model, whose last layer begins with zeros: wrong alike about every pixel."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        return self.head(self.body(x).relu())


def batch_mean(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], ignore_index=255)


def sample_mean(model, batch):
    images, labels = batch
    losses = F.cross_entropy(model(images), labels, ignore_index=255, reduction="none")
    return (losses.sum((1, 2)) / (labels != 255).sum((1, 2))).mean()


def test_a_loss_divided_by_the_valid_pixels_of_the_batch_is_refused_before_training(tmp_path):
    random = torch.Generator().manual_seed(0)
    images, labels = (torch.randint(0, 3, (20, *shape, 6, 8), generator=random) for shape in ((1,), ()))
    for image, label in enumerate(labels):
        label[: image % 4] = 255  # void
    model = Segmenter().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = torch.utils.data.TensorDataset(images.float(), labels)
    with pytest.raises(DataError, match="with other weights, .*neither the mean .* nor the sum"):
        check(model, data, tmp_path / "refused", task={"name": "loss", "function": batch_mean})
    trusted = {"name": "loss", "function": batch_mean, "single_losses": "trusted"}
    for name, task in (("mean", {"name": "loss", "function": sample_mean}), ("trusted", trusted)):
        assert check(model, data, tmp_path / name, task=task)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
