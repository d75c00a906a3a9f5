"""What is noticed about a model, its data and its task is said by the command that computes rows, not by those that read them."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from trak_lightning.tasks.criterion import CriterionWarning


@contextmanager
def notices(wanted: bool) -> Iterator[None]:
    """Unless `wanted`, hide what our modules log and warn of that was said when the rows were computed. Errors are raised as always."""
    if wanted:
        yield
        return
    logger = logging.getLogger("trak_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CriterionWarning)
            yield
    finally:
        logger.setLevel(level)
