"""Small real models and data, used by configs/ and by the tests."""

from trak_lightning.demos.countries import CountryDataModule, CountryT5
from trak_lightning.demos.dictionary import DictionaryDataModule, DictionaryGPT
from trak_lightning.demos.digits import DigitsCNN, DigitsDataModule
from trak_lightning.demos.emoji import EmojiCLIP, EmojiDataModule
from trak_lightning.demos.text import TextClassifier, TextDataModule

__all__ = [
    "CountryDataModule",
    "CountryT5",
    "DictionaryDataModule",
    "DictionaryGPT",
    "DigitsCNN",
    "DigitsDataModule",
    "EmojiCLIP",
    "EmojiDataModule",
    "TextClassifier",
    "TextDataModule",
]
