"""Fine-tuned language models: from the folder of a trainer and a file of conversations to datasets and models."""

from trak_lightning.chat.answers import Answer, Generation, read_answers
from trak_lightning.chat.data import ChatData, ChatDataset, collate
from trak_lightning.chat.encoding import Encoder
from trak_lightning.chat.loading import load_model, load_tokenizer
from trak_lightning.chat.module import LanguageModel
from trak_lightning.chat.records import Records

__all__ = [
    "Answer",
    "ChatData",
    "ChatDataset",
    "Encoder",
    "Generation",
    "LanguageModel",
    "Records",
    "collate",
    "load_model",
    "load_tokenizer",
    "read_answers",
]
