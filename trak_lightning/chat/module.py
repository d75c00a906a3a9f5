"""A fine-tuned language model as a LightningModule."""

from typing import Any, Literal

import lightning as L
from torch import Tensor

from trak_lightning.chat.loading import Dtype, load_model
from trak_lightning.chat.output_layer import output_layer_only
from trak_lightning.errors import UnsupportedModelError, require_option


class LanguageModel(L.LightningModule):
    """A model or adapter in a folder, as ``save_pretrained``, Trainer or TRL left it.

    Args:
        folder: of the model or adapter, or a name on the hub.
        base: folder of the base model, if the adapter was trained when it was elsewhere.
        dtype: of the weights; ``auto`` for that of the file.
        attribute_to: the parameters that were ``trained``; or those of the ``output_layer`` alone, trained or not, which takes no
            backward pass: see `trak_lightning.chat.output_layer`.
    """

    def __init__(
        self,
        folder: str,
        base: str | None = None,
        dtype: Dtype = "float32",
        attribute_to: Literal["trained", "output_layer"] = "trained",
    ) -> None:
        super().__init__()
        require_option("attribute_to", attribute_to, ("trained", "output_layer"))
        self.model = load_model(folder, base=base, dtype=dtype)
        if attribute_to == "output_layer":
            output_layer_only(self.model)

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
