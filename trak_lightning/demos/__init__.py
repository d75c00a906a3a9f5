"""Small real models and data, used by configs/ and by the tests; and those of the paper's experiments, for configs/paper/."""

from trak_lightning.demos.cifar import CIFAR10DataModule
from trak_lightning.demos.coco import CocoCaptions
from trak_lightning.demos.dictionary import DictionaryDataModule, DictionaryGPT
from trak_lightning.demos.digits import DigitsCNN, DigitsDataModule
from trak_lightning.demos.emoji import EmojiCLIP, EmojiDataModule
from trak_lightning.demos.finetuning import CLIP, PretrainedTransformer
from trak_lightning.demos.ftrace import FTrace
from trak_lightning.demos.imagenet import ImageNetDataModule
from trak_lightning.demos.images import ImageClassifier
from trak_lightning.demos.questions import QuestionDataModule, QuestionT5
from trak_lightning.demos.supersenses import SupersenseDataModule, SupersenseTagger
from trak_lightning.demos.tabular import TabularDataModule, TabularMLP
from trak_lightning.demos.text import TextClassifier, TextDataModule

__all__ = [
    "CLIP",
    "CIFAR10DataModule",
    "CocoCaptions",
    "DictionaryDataModule",
    "DictionaryGPT",
    "DigitsCNN",
    "DigitsDataModule",
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
]
