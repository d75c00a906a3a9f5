"""What training a model of ``transformers`` takes: its own loss, AdamW, one cycle."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn


class TransformerModule(L.LightningModule):
    """A model of ``transformers`` that returns its loss when it is given labels. Subclasses make ``self.model``.

    Args:
        lr: peak learning rate.
        weight_decay: of AdamW.
    """

    model: nn.Module

    def __init__(self, lr: float, weight_decay: float) -> None:
        super().__init__()
        self.lr = lr
        self.weight_decay = weight_decay

    def forward(self, **inputs: Tensor) -> Any:
        """What the transformer returns."""
        return self.model(**inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self(**batch).loss
        return loss

    def configure_optimizers(self):  # type: ignore[no-untyped-def]
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=self.weight_decay)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.lr, total_steps=int(self.trainer.estimated_stepping_batches), pct_start=0.1
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]
