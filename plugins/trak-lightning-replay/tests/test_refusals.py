"""Ordinary ways to train that a recording or a replay refuses, and names."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trak_lightning_replay import Record, Replay

from trak_lightning.errors import DataError, UnsupportedModelError
from trak_lightning.runtime.lightning import quiet_lightning


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)  # a module draws its weights before anything else is seeded


def _samples(n: int, seed: int) -> TensorDataset:
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.sin().sum(1))


class Plain(L.LightningModule):
    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(5, 12), activation or nn.GELU(), nn.Linear(12, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)[:, 0]

    def losses(self, batch: Any) -> Tensor:
        return (self(batch[0]) - batch[1]) ** 2

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.losses(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.02, momentum=0.5)


class Focal(Plain):
    """A weight without a gradient."""

    def losses(self, batch: Any) -> Tensor:
        loss = super().losses(batch)
        return loss * (1 - (-loss.detach()).exp())


class Consistency(Plain):
    """A target without a gradient."""

    def losses(self, batch: Any) -> Tensor:
        with torch.no_grad():
            target = self(1.1 * batch[0])
        return super().losses(batch) + 3 * (self(batch[0]) - target) ** 2


class Lossless(Plain):
    """A training_step alone, as most modules have."""

    losses = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return Plain.losses(self, batch).mean()


def test_a_training_without_losses_of_single_samples_is_refused_before_its_first_step(tmp_path: Path) -> None:
    module = Lossless()
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.raises(DataError, match=r"give Lossless a method losses\(batch\).*or pass losses=function"):
        _recorded(module, tmp_path)
    assert all(map(torch.equal, before, module.parameters()))
    loader = _recorded(module, tmp_path, losses=Plain.losses)
    assert Replay(module, loader, tmp_path, losses=Plain.losses).recording.num_steps == 8


class Hooked(Plain):
    """The gradient of one layer is halved."""

    def __init__(self) -> None:
        super().__init__()
        self.f[0].weight.register_hook(lambda gradient: 0.5 * gradient)


def _recorded(module: L.LightningModule, folder: Path, loader: DataLoader | None = None, **options: Any) -> DataLoader:
    torch.manual_seed(1)
    loader = loader or DataLoader(_samples(60, 0), 16, shuffle=True)
    callbacks = [*options.pop("callbacks", []), Record(folder, losses=options.pop("losses", None))]
    with quiet_lightning():
        settings = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        L.Trainer(max_epochs=2, accelerator="cpu", logger=False, callbacks=callbacks, **settings, **options).fit(
            module, loader
        )
    return loader


@pytest.mark.parametrize("make", [Focal, Consistency, Hooked])
def test_a_loss_that_hides_a_dependence_on_the_parameters_is_refused(make: type[Plain], tmp_path: Path) -> None:
    module = make()
    replay = Replay(module, _recorded(module, tmp_path / "recording"), tmp_path / "recording")
    with pytest.raises(DataError, match="the second derivative of the losses of .* is off by"):
        replay.score(_samples(3, 1), "regression", tmp_path)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.ReLU()])
def test_a_kink_hides_nothing(activation: nn.Module, tmp_path: Path) -> None:
    module = Plain(activation)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    replay = Replay(module, _recorded(module, tmp_path / "recording"), tmp_path / "recording")
    module.load_state_dict(weights)
    replay.score(_samples(3, 1), "regression", tmp_path, check=0)
    for name, value in module.state_dict().items():
        assert torch.equal(value, weights[name])


def test_a_trainer_of_64_bits_is_replayed_with_a_module_of_32(tmp_path: Path) -> None:
    module = Plain()
    replay = Replay(Plain(), _recorded(module, tmp_path / "recording", precision="64-true"), tmp_path / "recording")
    scores = replay.score(_samples(3, 1), "regression", tmp_path, check=0).values[:]
    step = np.ones((2, 60))
    step[:, 7] += 1e-4, -1e-4
    plus, minus = (replay.outputs(_samples(3, 1), "regression", weights) for weights in step)
    np.testing.assert_allclose(scores[:, 7], (plus - minus) / 2e-4, rtol=1e-4)
    assert replay.module.f[0].weight.dtype == torch.float32


def test_averaged_weights_frozen_parameters_and_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="StochasticWeightAveraging averages its weights"):
        _recorded(Plain(), tmp_path / "a", callbacks=[StochasticWeightAveraging(0.05, swa_epoch_start=1)])
    frozen = Plain()
    frozen.f[0].requires_grad_(False)
    with pytest.raises(UnsupportedModelError, match=r"was given f\.0\.weight, which is frozen"):
        _recorded(frozen, tmp_path / "b")
    with pytest.raises(DataError, match="num_workers=2"):
        _recorded(Plain(), tmp_path / "c", DataLoader(_samples(60, 0), 16, num_workers=2))


class AtKinks(Plain):
    """Each unit is a rounding error away from the kink of its ReLU, for one of the samples."""

    def __init__(self) -> None:
        super().__init__(nn.ReLU())
        x = _samples(60, 0).tensors[0]
        with torch.no_grad():
            self.f[0].bias.copy_(-(self.f[0].weight * x[:12]).sum(1))


def test_a_kink_that_is_crossed_is_no_hidden_dependence(tmp_path: Path) -> None:
    module = AtKinks()
    replay = Replay(module, _recorded(module, tmp_path / "recording"), tmp_path / "recording")
    replay.score(_samples(3, 1), "regression", tmp_path, check=0)


class SinglePrecision(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def test_a_module_that_does_not_compute_in_64_bits_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = SinglePrecision()
    replay = Replay(module, _recorded(module, tmp_path / "recording"), tmp_path / "recording")
    replay.score(_samples(3, 1), "regression", tmp_path, check=0)
    assert "second derivatives are not verified: SinglePrecision does not compute in 64 bits" in caplog.text
