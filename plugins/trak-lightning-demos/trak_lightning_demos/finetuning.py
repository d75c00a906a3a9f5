"""Training of the demos with AdamW and a one-cycle schedule; ``transformers`` models, from scratch or pretrained, on their own loss."""

from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from trak_lightning.errors import DataError
from trak_lightning_demos.pretrained import locate, transformers


class OneCycle(L.LightningModule):
    """Train a module with AdamW and a one-cycle learning rate schedule.

    Args:
        lr: peak learning rate.
        weight_decay: weight decay of AdamW.
        eps: eps of AdamW.
    """

    def __init__(self, lr: float, weight_decay: float, eps: float = 1e-8) -> None:
        super().__init__()
        self.lr = lr
        self.weight_decay = weight_decay
        self.eps = eps

    def configure_optimizers(self):  # type: ignore[no-untyped-def]
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=self.weight_decay, eps=self.eps)
        steps = int(self.trainer.estimated_stepping_batches)
        # With ten steps, the schedule would divide by the length of its warm-up, 0.1 · 10 − 1 = 0.
        rise = 0.1 if steps != 10 else 0.2
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.lr, total_steps=steps, pct_start=rise)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class TransformerModule(OneCycle):
    """Train a ``transformers`` model that returns its loss if labels are among its inputs. Subclasses set ``self.model``.

    Args:
        lr: peak learning rate.
        weight_decay: weight decay of AdamW.
        eps: eps of AdamW.
    """

    model: nn.Module

    def forward(self, **inputs: Tensor) -> Any:
        """Return the output of the transformer."""
        return self.model(**inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self(**batch).loss
        return loss


class PretrainedTransformer(TransformerModule):
    """Fine-tune any model that one of the ``AutoModel`` classes loads.

    Args:
        pretrained: name of a model on the Hugging Face hub, or a folder.
        architecture: ``AutoModelForSeq2SeqLM``, ``AutoModelForCausalLM``, ``AutoModel`` or another ``AutoModel`` class.
        weights: ``pretrained``, or ``random`` to train the same architecture from scratch.
        lr: peak learning rate.
        weight_decay: weight decay of AdamW.
    """

    def __init__(
        self,
        pretrained: str,
        architecture: str,
        weights: Literal["pretrained", "random"] = "pretrained",
        lr: float = 5e-5,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, weight_decay)
        self.save_hyperparameters()
        with transformers() as library:
            auto = getattr(library, architecture, None)
            if not architecture.startswith("AutoModel") or auto is None:
                raise DataError(f"architecture must be one of transformers' AutoModel classes, got {architecture!r}")
            source = locate(pretrained)
            if weights == "random":
                self.model = auto.from_config(library.AutoConfig.from_pretrained(source))
            else:
                self.model = auto.from_pretrained(source)
        self.model.train()  # pretrained models are loaded in eval mode, and Lightning would leave dropout off


class CLIP(PretrainedTransformer):
    """Train CLIP, which has two towers, with the contrastive loss of each batch.

    Args:
        pretrained: name of a model on the Hugging Face hub, or a folder.
        weights: ``pretrained``, or ``random`` to train the same architecture from scratch.
        lr: peak learning rate.
        weight_decay: weight decay of AdamW.
    """

    def __init__(
        self,
        pretrained: str,
        weights: Literal["pretrained", "random"] = "pretrained",
        lr: float = 5e-5,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(pretrained, "AutoModel", weights, lr, weight_decay)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self(**batch, return_loss=True).loss
        return loss
