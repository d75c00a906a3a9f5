"""The splits of a DataModule: its methods ``NAME_dataloader``."""

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L

from trak_lightning.data.dataset import AttributionData
from trak_lightning.errors import DataError


def split_names(datamodule: L.LightningDataModule) -> list[str]:
    """The names of the loaders that a DataModule has; Lightning's base class has methods for more, which raise an error."""
    found = []
    for name in dir(datamodule):
        method = getattr(datamodule, name) if name.endswith("_dataloader") else None
        if method and getattr(method, "__func__", method) is not getattr(L.LightningDataModule, name, None):
            found.append(name.removesuffix("_dataloader"))
    return found


def loader_method(datamodule: L.LightningDataModule, split: str) -> Callable[[], Any]:
    """The method that makes the loader of a split.

    Raises:
        DataError: there is none; names the splits that there are.
    """
    known = split_names(datamodule)
    if split not in known and hasattr(datamodule, "explain_missing"):
        raise DataError(datamodule.explain_missing(split))
    if split not in known:
        raise DataError(
            f"{type(datamodule).__name__} has no method {split}_dataloader, which split {split!r} needs; the splits that it "
            f"has are {', '.join(known) or 'none'}. Name one of them with --target_split or --train_split, or add the method."
        )
    found: Callable[[], Any] = getattr(datamodule, f"{split}_dataloader")
    return found


def read_split(
    datamodule: L.LightningDataModule, split: str, batch_size: int | None, *, option: str
) -> AttributionData:
    """The data of a split, which `option` names.

    Raises:
        DataError: there is no such split, it has several loaders, or it cannot be read by index.
    """
    loaders = loader_method(datamodule, split)()
    if isinstance(loaders, (list, tuple, Mapping)):
        if len(loaders) != 1:
            raise DataError(
                f"{split}_dataloader of {type(datamodule).__name__} returns {len(loaders)} loaders, and a split is one. Add a "
                f"method such as first_dataloader that returns one of them, and name it: --{option} first."
            )
        (loaders,) = loaders.values() if isinstance(loaders, Mapping) else loaders
    return AttributionData.of(loaders, batch_size, hooks=datamodule)


def setup_stage(split: str) -> str:
    """The stage for which Lightning sets up a split."""
    return {"val": "validate", "train": "fit", "predict": "predict"}.get(split, "test")
