"""A training leaves checkpoints, each with the samples that it was trained on."""

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trak_lightning.chat.lightning_callback import AttributionCallback
from trak_lightning.runtime.lightning import WRITES_NOTHING


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(1, 1), []

    def training_step(self, batch, batch_idx):
        self.seen += batch[0][:, 0].int().tolist()
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_lightning_checkpoint_knows_the_samples_that_it_was_trained_on(tmp_path):
    model = Net()
    data = DataLoader(TensorDataset(torch.arange(10.0)[:, None]), batch_size=4, shuffle=True)
    callback = AttributionCallback(tmp_path, steps=[2, 3])
    trainer = L.Trainer(accelerator="cpu", max_epochs=2, callbacks=[callback], **WRITES_NOTHING)
    trainer.fit(model, data)
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"step-2.ckpt", "step-3.ckpt", "step-6.ckpt"}
    assert np.load(tmp_path / "order.npy").tolist() == model.seen
    assert np.load(tmp_path / "step-2.subset.npy").tolist() == sorted(model.seen[:8])
    assert np.load(tmp_path / "step-3.subset.npy").tolist() == list(range(10))
