"""Small real models and data for each modality, used by configs/, and the models and data of the TRAK paper, used by configs/paper/."""

from trak_lightning_demos.cifar import CIFAR10DataModule
from trak_lightning_demos.coco import CocoCaptions
from trak_lightning_demos.dictionary import DictionaryDataModule, DictionaryGPT
from trak_lightning_demos.emoji import EmojiCLIP, EmojiDataModule
from trak_lightning_demos.finetuning import CLIP, PretrainedTransformer
from trak_lightning_demos.ftrace import FTrace
from trak_lightning_demos.imagenet import ImageNetDataModule
from trak_lightning_demos.images import ImageClassifier
from trak_lightning_demos.questions import QuestionDataModule, QuestionT5
from trak_lightning_demos.supersenses import SupersenseDataModule, SupersenseTagger
from trak_lightning_demos.tabular import TabularDataModule, TabularMLP
from trak_lightning_demos.text import TextClassifier, TextDataModule

__all__ = [
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
]
