"""A fine-tuned language model as a LightningModule."""

from typing import Any

import lightning as L
from torch import Tensor

from trak_lightning.chat.loading import Dtype, load_model
from trak_lightning.errors import UnsupportedModelError


class LanguageModel(L.LightningModule):
    """A model or adapter in a folder, as ``save_pretrained``, Trainer or TRL left it.

    Args:
        folder: of the model or adapter, or a name on the hub.
        base: folder of the base model, if the adapter was trained when it was elsewhere.
        dtype: of the weights; ``auto`` for that of the file.
    """

    def __init__(self, folder: str, base: str | None = None, dtype: Dtype = "float32") -> None:
        super().__init__()
        self.model = load_model(folder, base=base, dtype=dtype)

    def forward(self, **inputs: Tensor) -> Any:
        """What the language model returns."""
        return self.model(**inputs)

    def training_step(self, batch: Any) -> Any:
        """Raise `UnsupportedModelError`: this is for models that are trained already."""
        raise UnsupportedModelError(
            "LanguageModel is for models that are trained already: name them under checkpoints, and do not retrain them "
            "(evaluation.models: 0). To train or evaluate, use a LightningModule with your training_step."
        )

    def configure_optimizers(self) -> Any:
        """Raise as `training_step`."""
        self.training_step(None)
