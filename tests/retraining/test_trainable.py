"""A training that cannot run, or that nobody asked for, is refused before it begins."""

import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping, Timer

from trak_lightning.demos import DigitsCNN
from trak_lightning.errors import SettingsError, UnsupportedModelError
from trak_lightning.retraining.trainable import require_trainable
from trak_lightning.runtime.lightning import WRITES_NOTHING


class OnlyForward(L.LightningModule):
    def forward(self, x):
        return x


class WithoutOptimizer(OnlyForward):
    def training_step(self, batch, batch_idx):
        return None


def trainer(**settings):
    return L.Trainer(accelerator="cpu", **{**WRITES_NOTHING, **settings})


@pytest.mark.parametrize(
    ("model", "missing"),
    [
        (OnlyForward, "OnlyForward has no training_step and no configure_optimizers"),
        (WithoutOptimizer, "WithoutOptimizer has no configure_optimizers"),
    ],
)
def test_a_model_that_lightning_cannot_train_is_refused_with_what_it_lacks(model, missing):
    with pytest.raises(UnsupportedModelError, match=missing):
        require_trainable(model(), trainer(max_epochs=1), 1)


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({}, False),
        ({"max_epochs": 3}, True),
        ({"max_epochs": -1}, True),
        ({"max_steps": 10}, True),
        ({"max_time": "00:00:01:00"}, True),
        ({"fast_dev_run": True}, True),
        pytest.param({"callbacks": [EarlyStopping("loss")]}, True, id="EarlyStopping"),
        pytest.param({"callbacks": [Timer("00:00:01:00")]}, True, id="Timer"),
    ],
)
def test_a_training_of_1000_epochs_that_nobody_asked_for_is_refused(settings, ends):
    if ends:
        require_trainable(DigitsCNN(), trainer(**settings), settings.get("max_epochs"))
    else:
        with pytest.raises(SettingsError, match="none of trainer.max_epochs.*1000 epochs.*--trainer.max_epochs 20"):
            require_trainable(DigitsCNN(), trainer(**settings), None)
