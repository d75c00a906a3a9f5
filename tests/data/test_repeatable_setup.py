"""Every call of ``setup`` draws the same, and none is made that nobody needs."""

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset, random_split

from trak_lightning.data.repeatable_setup import repeat_setup


class Split(L.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.stages = []

    def setup(self, stage):
        self.stages.append(str(stage))
        self.part = random_split(TensorDataset(torch.arange(20.0)[:, None]), [10, 10])[0]

    def train_dataloader(self):
        return DataLoader(self.part, batch_size=5)

    predict_dataloader = train_dataloader


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        return self.linear(batch[0]).sum()

    def predict_step(self, batch, index):
        return batch[0]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_setup_draws_the_same_split_each_time_and_is_not_called_again_to_predict():
    data = Split()
    repeat_setup(data)
    data.setup("fit")
    drawn = list(data.part.indices)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(Model(), datamodule=data)
    assert data.part.indices == drawn
    trainer.predict(Model(), datamodule=data)
    assert data.stages == ["fit", "TrainerFn.FITTING"]
