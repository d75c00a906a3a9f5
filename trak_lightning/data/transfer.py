"""Move a batch to a device as in training."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.core.hooks import DataHooks
from torch import nn

from trak_lightning.data.loading import IndexedBatch
from trak_lightning.data.trees import map_leaves
from trak_lightning.runtime.lightning import with_a_trainer


def to_device(batch: IndexedBatch, datamodule: Any, model: nn.Module, device: torch.device) -> IndexedBatch:
    """Move a batch with the transfer hooks of the user's DataModule, or else of the LightningModule."""

    def hook(name: str, *arguments: Any) -> Any:
        for owner in (datamodule, model):
            if isinstance(owner, DataHooks) and getattr(type(owner), name) is not getattr(DataHooks, name):
                with with_a_trainer(owner):  # type: ignore[arg-type]
                    return getattr(owner, name)(*arguments)
        return _moved(*arguments) if name == "transfer_batch_to_device" else getattr(DataHooks(), name)(*arguments)

    moved = hook("on_before_batch_transfer", batch.batch, 0)
    moved = hook("transfer_batch_to_device", moved, device, 0)
    return batch._replace(batch=hook("on_after_batch_transfer", moved, 0))


def _moved(batch: Any, device: torch.device, dataloader_idx: int) -> Any:
    """The batch as Lightning moves it; sequences that cannot be made from a list, such as a range, stay as they are."""

    def move(entry: Any) -> Any:
        return DataHooks().transfer_batch_to_device(entry, device, dataloader_idx)

    try:
        return move(batch)
    except (TypeError, ValueError):  # ValueError: of a frozen dataclass
        return map_leaves(
            lambda leaf: leaf if isinstance(leaf, Sequence) and not hasattr(leaf, "to") else move(leaf), batch
        )
