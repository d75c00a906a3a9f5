"""The handwritten digits of the quick start: data and a small CNN. All other demos are in the distribution trak-lightning-demos."""

from importlib import import_module
from typing import Any

from trak_lightning.demos.digits import DigitsCNN, DigitsDataModule
from trak_lightning.errors import PluginError

__all__ = ["DigitsCNN", "DigitsDataModule"]


def __getattr__(name: str) -> Any:
    """Find the demos that moved, which configuration files of earlier versions name here."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module("trak_lightning_demos"), name)
    except ModuleNotFoundError as error:
        if error.name != "trak_lightning_demos":
            raise
        raise PluginError(
            f"{__name__} has no {name}. All demos but the digits are in trak_lightning_demos, and the distribution "
            "trak-lightning-demos is not installed: install it from plugins/trak-lightning-demos of the repository"
        ) from error
