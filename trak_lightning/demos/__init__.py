"""Small real models and data, used by configs/ and by the tests."""

from trak_lightning.demos.digits import DigitsCNN, DigitsDataModule
from trak_lightning.demos.text import TextClassifier, TextDataModule

__all__ = ["DigitsCNN", "DigitsDataModule", "TextClassifier", "TextDataModule"]
