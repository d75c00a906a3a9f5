"""Fine-tuned language models: from the folder of a trainer and a file of conversations to datasets and models.

Names are imported on first use, so that reading the options of ``trak sft`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trak_lightning.chat.answers import Answer, Generation, read_answers
    from trak_lightning.chat.data import ChatData, ChatDataset, collate
    from trak_lightning.chat.encoding import Encoder
    from trak_lightning.chat.loading import load_model, load_tokenizer
    from trak_lightning.chat.module import LanguageModel
    from trak_lightning.chat.output_layer import output_layer_only
    from trak_lightning.chat.records import Records

_MODULES = {
    "Answer": "answers",
    "ChatData": "data",
    "ChatDataset": "data",
    "Encoder": "encoding",
    "Generation": "answers",
    "LanguageModel": "module",
    "Records": "records",
    "collate": "data",
    "load_model": "loading",
    "load_tokenizer": "loading",
    "output_layer_only": "output_layer",
    "read_answers": "answers",
}

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
    "output_layer_only",
    "read_answers",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
