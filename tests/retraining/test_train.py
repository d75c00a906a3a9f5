"""Models trained one after the other on parts of the training set."""

import gc
import weakref

import lightning as L
from trak_lightning_demos import TabularDataModule, TabularMLP

from trak_lightning.retraining.subsets import SubsetPlan
from trak_lightning.retraining.train import train_ensemble


def test_a_trained_model_is_let_go_before_the_next_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("trak_lightning.retraining.train.LARGE", 0)  # as if it were large
    made, alive = [], []

    def recipe(seed):
        alive.append(sum(model() is not None for model in made))
        model = TabularMLP(10)
        made.append(weakref.ref(model))
        return model, L.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
        )

    data = TabularDataModule("diabetes")
    data.setup()
    gc.disable()  # so that chance has no part in it
    try:
        train_ensemble(recipe, data, SubsetPlan("ensemble", len(data.train_set), 0.5, seed=0), 3, tmp_path)
    finally:
        gc.enable()
    assert alive == [0, 0, 0]
