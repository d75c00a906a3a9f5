"""Everything that depends on Lightning's private API, and what Lightning prints and does that a featurizer must undo.

No other module imports or reads a name of Lightning's that begins with an underscore, so that an update of Lightning can
break this file only.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

IRRELEVANT = (
    # We make the loader ourselves and keep the user's num_workers.
    ".*does not have many workers.*",
    # Lightning 2.6 with torch 2.13; users can do nothing about it.
    ".*isinstance\\(treespec, LeafSpec\\).*",
    # Of the logger in a configuration, by commands that log nothing.
    ".*tensorboardX.* has been removed as a dependency.*",
    # A batch plan is deliberately not a BatchSampler; see trak_lightning.data.loading.BatchPlan.
    ".*custom batch sampler `BatchPlan`.*",
    # Ranks join the group even where nothing is left to compute.
    ".*Total length of `DataLoader` across ranks is zero.*",
    # Of batches that a rank computes only to keep step with the others.
    ".*predict returned None if it was on purpose.*",
    # Once for each model that is trained; the user's own training says it, too.
    ".*You passed in a `val_dataloader` but have no `validation_step`.*",
    # Of self.log in the validation of retrained models, whose logs nobody reads.
    ".*infer the `batch_size` from an ambiguous collection.*",
    ".*training batches.*smaller than the logging interval.*",
)

WRITES_NOTHING: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""Arguments of a Trainer that prints and writes nothing, since a run directory keeps all that is needed."""


def silence() -> None:
    """Hide the warnings in `IRRELEVANT` from now on."""
    for message in IRRELEVANT:
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide Lightning's tips and hardware lines, and the warnings in `IRRELEVANT`."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            silence()
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def default_trainer() -> L.Trainer:
    """A Trainer of one device that prints, logs and writes nothing."""
    with quiet_lightning():
        return L.Trainer(accelerator="auto", devices=1, **WRITES_NOTHING)


@contextmanager
def with_a_trainer(owner: L.LightningDataModule | L.LightningModule) -> Iterator[None]:
    """Let hooks ask ``self.trainer.training`` where nothing was trained in this process: they have a Trainer that does nothing."""
    try:
        attached = owner.trainer is not None
    except RuntimeError:  # of a LightningModule without one
        attached = False
    if attached:
        yield
        return
    owner.trainer = _idle_trainer()
    try:
        yield
    finally:
        owner.trainer = None


_idle_trainer = cache(default_trainer)


@contextmanager
def without_resuming(trainer: L.Trainer) -> Iterator[None]:
    """Keep Lightning from loading other weights. Under SLURM every run starts from the newest ``hpc_ckpt_*.ckpt`` in
    ``default_root_dir``, which an unrelated training may have left there when its time was up."""
    connector = trainer._checkpoint_connector
    connector._select_ckpt_path = _no_checkpoint  # type: ignore[method-assign]
    try:
        yield
    finally:
        del connector._select_ckpt_path


def _no_checkpoint(*args: Any, **kwargs: Any) -> None:
    return None


def spawns_ranks(trainer: L.Trainer) -> bool:
    """Whether the Trainer starts its ranks anew for every run, so that this process is never one of them."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def cluster_environment(trainer: L.Trainer) -> ClusterEnvironment | None:
    """The cluster that the Trainer found, such as SLURM. Strategies for one device do not show it."""
    return trainer._accelerator_connector.cluster_environment


def share_device_mesh(outer: L.LightningModule, inner: L.LightningModule) -> None:
    """Give `inner` the device mesh, which Lightning sets for the outermost module only."""
    inner._device_mesh = outer._device_mesh
