"""What Lightning says and does on every Trainer that a featurizer must undo."""

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L

IRRELEVANT = (
    # A loader of our own making; the user's num_workers is taken over.
    ".*does not have many workers.*",
    # Lightning 2.6 with torch 2.13; nothing a user can do about.
    ".*isinstance\\(treespec, LeafSpec\\).*",
    # A batch plan is no BatchSampler on purpose; see trak_lightning.data.dataset.BatchPlan.
    ".*custom batch sampler `BatchPlan`.*",
    # Ranks meet where there may be nothing left to do.
    ".*Total length of `DataLoader` across ranks is zero.*",
    ".*`num_training_batches`.*lower than the logging interval.*",
)


def silence() -> None:
    """Hide the warnings in `IRRELEVANT` from now on."""
    for message in IRRELEVANT:
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide Lightning's tips and hardware lines, and the warnings in `IRRELEVANT`."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            silence()
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def from_the_weights_there_are(trainer: L.Trainer) -> Iterator[None]:
    """Keep Lightning from loading other weights. Under SLURM every run begins with the newest ``hpc_ckpt_*.ckpt`` in
    ``default_root_dir``, which a training of something else may have left when its time was up."""
    connector = trainer._checkpoint_connector
    connector._select_ckpt_path = _no_checkpoint  # type: ignore[method-assign]
    try:
        yield
    finally:
        del connector._select_ckpt_path


def _no_checkpoint(*args: Any, **kwargs: Any) -> None:
    return None


@contextmanager
def interruptible() -> Iterator[None]:
    """Make Ctrl+C a `KeyboardInterrupt`; Lightning turns it into ``sys.exit(1)`` and ignores SIGINT from then on."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error
