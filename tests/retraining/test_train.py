"""Models trained one after the other on parts of the training set."""

import gc
import warnings
import weakref
from contextlib import nullcontext

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from trak_lightning_demos import TabularDataModule, TabularMLP

from trak_lightning import registry
from trak_lightning.data.dataset import AttributionData
from trak_lightning.errors import IncompatibleRunError
from trak_lightning.retraining.outputs import Retraining, one_stored
from trak_lightning.retraining.retrainer import Retrainer, model_outputs
from trak_lightning.retraining.subsets import SubsetPlan
from trak_lightning.retraining.train import train_ensemble, train_on_subset
from trak_lightning.runtime.lightning import WRITES_NOTHING
from trak_lightning.tasks.loss import Loss


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


class Line(L.LightningModule):
    """y ≈ w·x, least squares by SGD."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1, bias=False)
        torch.nn.init.zeros_(self.linear.weight)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return ((self.linear(x)[:, 0] - y) ** 2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Points(L.LightningDataModule):
    def __init__(self, rows, shuffle=True):
        super().__init__()
        self.rows, self.shuffle = rows, shuffle

    def train_dataloader(self):
        return DataLoader(TensorDataset(*self.rows), batch_size=4, shuffle=self.shuffle)


@pytest.mark.parametrize("shuffle", [True, False])
def test_at_a_fixed_seed_only_the_removed_samples_are_missing_from_the_batches(shuffle):
    rows = torch.randn(10, 3), torch.randn(10)
    kept = np.array([0, 1, 3, 4, 5, 6, 8, 9])

    def recipe(seed):
        return Line(), L.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
        )

    model, trainer = train_on_subset(recipe, Points(rows, shuffle), kept, 7, keep_batches=True)
    whole = RandomSampler(range(10), generator=torch.Generator().manual_seed(7)) if shuffle else range(10)
    weight, steps = torch.zeros(3), 0
    for _ in range(2):
        for batch in torch.tensor(list(whole)).split(4):
            x, y = (part[[row for row in batch.tolist() if row in kept]] for part in rows)
            if len(x):
                weight = weight - 0.1 * 2 * (x @ weight - y) @ x / len(x)
                steps += 1
    torch.testing.assert_close(model.linear.weight[0].detach(), weight)
    assert trainer.global_step == steps


def collate(samples):
    if any(isinstance(value, str) for sample in samples for value in sample.values()):
        raise ValueError("text cannot become a tensor")
    return torch.stack([sample["x"] for sample in samples]), torch.stack([sample["y"] for sample in samples])


class Written(Points):
    """The same points with a column of text, on which collators of transformers fail."""

    def train_dataloader(self):
        collator = type(
            "Collator", (), {"__module__": "transformers.data", "__call__": lambda self, rows: collate(rows)}
        )
        rows = [{"x": x, "y": y, "text": "a point"} for x, y in zip(*self.rows, strict=True)]
        return DataLoader(rows, batch_size=4, shuffle=self.shuffle, collate_fn=collator())


def test_a_column_of_text_stops_training_no_more_than_attribution():
    rows = torch.randn(10, 3), torch.randn(10)

    def recipe(seed):
        L.seed_everything(seed, verbose=False)
        return Line(), L.Trainer(max_epochs=2, accelerator="cpu", **WRITES_NOTHING)

    trained = [train_on_subset(recipe, data, np.arange(8), 7)[0] for data in (Points(rows), Written(rows))]
    torch.testing.assert_close(trained[0].linear.weight, trained[1].linear.weight)


class Grown(Line):
    """Trained with a learning rate that no setting records, and with noise that the seed of a training does not determine."""

    lr, noise, draws = 0.1, 0.0, np.random.default_rng(0)

    def forward(self, x):
        return self.linear(x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def training_step(self, batch, batch_idx):
        noise = self.draws.standard_normal() * self.noise
        return super().training_step(batch, batch_idx) + noise * self.linear.weight.sum()


@pytest.mark.parametrize(
    ("changed", "found"), [({}, None), ({"lr": 0.12}, "error"), ({"noise": 1.0}, "warning"), ({"noise": 1e-3}, None)]
)
@pytest.mark.parametrize("kind", ["checkpoints", "outputs"])
def test_models_are_added_to_stored_ones_only_if_one_of_these_comes_out_the_same_again(
    kind, changed, found, tmp_path, monkeypatch, caplog
):
    def recipe(seed):
        L.seed_everything(seed, verbose=False)
        return Grown(), L.Trainer(max_epochs=3, accelerator="cpu", **WRITES_NOTHING)

    monkeypatch.setattr(Grown, "draws", np.random.default_rng(0))
    torch.manual_seed(0)
    data = Points((torch.randn(10, 3), torch.randn(10)))
    plan = SubsetPlan("ensemble", 10, 0.5, seed=0)

    def grow(size):
        if kind == "checkpoints":
            return train_ensemble(recipe, data, plan, size, tmp_path, verify=True)
        rows = AttributionData.of(TensorDataset(*data.rows))
        retrainer = Retrainer(recipe, data, registry.create("tasks", {"name": "regression"}), rows, rows)
        retrainings = [
            Retraining(tmp_path / f"{size}-{member}.npz", plan.subset(member), plan.training_seed(member))
            for member in range(size)
        ]
        if (known := one_stored(tmp_path, retrainings)) is not None:
            retrainer.require_repeatable(known, tmp_path)
        return retrainer.retrain(retrainings)

    grow(2)
    for name, value in changed.items():
        monkeypatch.setattr(Grown, name, value)
    with nullcontext() if found != "error" else pytest.raises(IncompatibleRunError, match="training has changed"):
        grow(3)
    assert ("training is not repeatable" in caplog.text) == (found == "warning")


class Graphs:
    """Nodes of all graphs of a batch, one after the other."""

    def __init__(self, samples):
        self.x, self.y = torch.cat([x for x, _ in samples]), torch.stack([y for _, y in samples])
        self.graph = torch.cat([torch.full((len(x),), at) for at, (x, _) in enumerate(samples)])


def time_first(samples):
    return torch.stack([x for x, _ in samples], 1), torch.stack([y for _, y in samples])


def squares(model, batch):
    """The squared error of each sample."""
    if isinstance(batch, Graphs):
        means = torch.stack([batch.x[batch.graph == at].mean(0) for at in range(len(batch.y))])
        return (model.linear(means)[:, 0] - batch.y) ** 2
    if isinstance(batch, list):
        return torch.stack([(model.linear(x.mean(0))[0] - y) ** 2 for x, y in batch])
    return (model.linear(batch[0].mean(0))[:, 0] - batch[1]) ** 2


def mean_square(model, batch):
    return squares(model, batch).mean()


@pytest.mark.parametrize("loss", [squares, mean_square])
@pytest.mark.parametrize("collate", [time_first, list, Graphs])
def test_outputs_of_retrained_models_are_those_of_single_samples_whatever_the_form_of_a_batch(collate, loss):
    samples = [(torch.randn(5, 3), torch.randn(())) for _ in range(7)]
    model = Line()
    torch.nn.init.normal_(model.linear.weight)
    data = AttributionData.of(DataLoader(samples, batch_size=3, collate_fn=collate))
    with torch.no_grad():
        alone = [-float((model.linear(x.mean(0))[0] - y) ** 2) for x, y in samples]
    np.testing.assert_allclose(model_outputs(model, Loss(loss), data), alone, rtol=1e-5)


def test_few_batches_are_no_warning_of_each_model_that_is_retrained_and_warnings_of_the_user_stay(tmp_path):
    class Warns(Line):
        def training_step(self, *arguments):
            warnings.warn("of the user", UserWarning, stacklevel=1)
            return super().training_step(*arguments)

    def recipe(seed):
        logger = CSVLogger(tmp_path)  # with one, Lightning compares the number of batches with log_every_n_steps
        return Warns(), L.Trainer(max_epochs=1, accelerator="cpu", logger=logger, enable_progress_bar=False)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train_on_subset(recipe, Points((torch.randn(10, 3), torch.randn(10))), np.arange(8), 7)
    texts = [str(each.message) for each in said]
    assert "of the user" in texts
    assert not [text for text in texts if "log_every_n_steps" in text]
