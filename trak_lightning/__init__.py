"""Which training examples made the model predict this? TRAK data attribution on PyTorch Lightning.

Public names are imported on first use, so that commands that need no torch do not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trak_lightning.api import TRAK
    from trak_lightning.errors import TrakError
    from trak_lightning.extractors.base import GradientExtractor
    from trak_lightning.projectors.base import Projector
    from trak_lightning.scoring.base import Scorer
    from trak_lightning.scoring.scores import Scores
    from trak_lightning.stores.base import FeatureStore
    from trak_lightning.tasks.base import Task

_MODULES = {
    "TRAK": "trak_lightning.api",
    "FeatureStore": "trak_lightning.stores.base",
    "GradientExtractor": "trak_lightning.extractors.base",
    "Projector": "trak_lightning.projectors.base",
    "Scorer": "trak_lightning.scoring.base",
    "Scores": "trak_lightning.scoring.scores",
    "Task": "trak_lightning.tasks.base",
    "TrakError": "trak_lightning.errors",
}

__version__ = "0.2.0"
__all__ = ["TRAK", "FeatureStore", "GradientExtractor", "Projector", "Scorer", "Scores", "Task", "TrakError"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if name == "TRAKer":  # of an AttributeError, `from trak_lightning import TRAKer` would not show the message
        page = import_module("trak_lightning.errors").docs_page("coming-from")
        raise ImportError(
            f"{__name__} has no TRAKer: the class is TRAK. Coming from traker, its calls next to ours: {page}"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
