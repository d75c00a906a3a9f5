"""Small real models and data, used by configs/ and by the tests."""

from trak_lightning.demos.digits import DigitsCNN, DigitsDataModule

__all__ = ["DigitsCNN", "DigitsDataModule"]
