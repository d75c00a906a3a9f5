"""The handwritten digits of the quick start: data and a small CNN. All other demos are in the distribution trak-lightning-demos."""

from importlib import import_module
from typing import Any

from trak_lightning.demos.digits import DigitsCNN, DigitsDataModule
from trak_lightning.errors import PluginError

__all__ = ["DigitsCNN", "DigitsDataModule"]

_MOVED = frozenset(
    [
        "CLIP",
        "CIFAR10DataModule",
        "CocoCaptions",
        "DictionaryDataModule",
        "DictionaryGPT",
        "EmojiCLIP",
        "EmojiDataModule",
        "FTrace",
        "ImageClassifier",
        "ImageNetDataModule",
        "PretrainedTransformer",
        "QuestionDataModule",
        "QuestionT5",
        "SupersenseDataModule",
        "SupersenseTagger",
        "TabularDataModule",
        "TabularMLP",
        "TextClassifier",
        "TextDataModule",
        "cifar",
        "coco",
        "dictionary",
        "emoji",
        "finetuning",
        "ftrace",
        "glosses",
        "imagenet",
        "images",
        "pretrained",
        "questions",
        "resnets",
        "supersenses",
        "tables",
        "tabular",
        "text",
        "words",
    ]
)


def __getattr__(name: str) -> Any:
    """Find the demos that moved, which configuration files of earlier versions name here."""
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        demos = import_module("trak_lightning_demos")
    except ModuleNotFoundError as error:
        if error.name != "trak_lightning_demos":
            raise
        raise PluginError(
            f"{__name__}.{name} is now trak_lightning_demos.{name}, but the distribution trak-lightning-demos is not "
            "installed: install it from plugins/trak-lightning-demos of the repository"
        ) from error
    return getattr(demos, name)
