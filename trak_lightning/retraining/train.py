"""Train models on subsets of the training set, with the user's own model, data and Trainer settings."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeAlias

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, Subset

from trak_lightning.data.columns import WithoutText
from trak_lightning.errors import DataError
from trak_lightning.model.checkpoints import Checkpoint, subset_path
from trak_lightning.retraining.repeat import require_repeatable
from trak_lightning.retraining.subsets import SubsetPlan
from trak_lightning.run.arrays import rms
from trak_lightning.run.atomic import atomic_write
from trak_lightning.run.numpy_files import write_npy
from trak_lightning.runtime.lightning import quiet_lightning, without_resuming
from trak_lightning.runtime.progress import progress
from trak_lightning.runtime.signals import interruptible

Recipe: TypeAlias = Callable[[int], tuple[L.LightningModule, L.Trainer]]
"""Seeds everything and returns a fresh model and Trainer."""

LARGE = 2**20
"""Bytes of parameters from which a model is freed explicitly instead of whenever the garbage collector runs."""


def train_on_subset(
    recipe: Recipe,
    datamodule: L.LightningDataModule,
    subset: npt.NDArray[np.int64],
    seed: int,
    *,
    keep_batches: bool = False,
) -> tuple[L.LightningModule, L.Trainer]:
    """Train a fresh model on the samples at `subset` (s,) only, and return it with its Trainer.

    `seed` is that of initialization and batch order. With `keep_batches`, batches are those of the whole training set without
    the other samples.
    """
    _let_go(datamodule)
    model, trainer = recipe(seed)
    batches_seed = seed if keep_batches else None
    with quiet_lightning(), without_resuming(trainer), _restricted(datamodule, subset, batches_seed):
        trainer.fit(model, datamodule=datamodule)
    return model, trainer


def _let_go(datamodule: L.LightningDataModule) -> None:
    """Free the model that was trained last, if it is large; collecting takes longer than training a small one."""
    # The DataModule refers to its Trainer, which forms a reference cycle with its model.
    trainer, datamodule.trainer = datamodule.trainer, None
    model = None if trainer is None else trainer.lightning_module
    if model is not None and sum(each.nbytes for each in model.parameters()) >= LARGE:
        del trainer, model
        gc.collect()


def train_ensemble(
    recipe: Recipe,
    datamodule: L.LightningDataModule,
    plan: SubsetPlan,
    size: int,
    folder: Path,
    *,
    verify: bool = False,
    weights_only: bool = True,
) -> tuple[list[Path], int]:
    """Train the members that `folder` lacks: ``00.ckpt`` with ``00.subset.npy`` next to it, and so on.

    With `verify`, before members are added, one that is there is trained again, and its weights are compared. `weights_only` is that of `Checkpoint.of`.

    Returns:
        Checkpoint files of all members, and how many were trained now.

    Raises:
        IncompatibleRunError: the folder holds models that were trained with other settings, or with other code.
    """
    plan.record(folder)
    paths = checkpoint_paths(folder, size)
    missing = [member for member, path in enumerate(paths) if not path.exists()]
    if verify and 0 < len(missing) < size:
        first = min(set(range(size)) - set(missing))
        _require_same_weights(recipe, datamodule, plan, first, paths[first], weights_only)
    with interruptible() as check, progress("train", len(missing)) as advance:
        for member in missing:
            subset = plan.subset(member)
            trainer = train_on_subset(recipe, datamodule, subset, plan.training_seed(member))[1]
            if trainer.is_global_zero:
                write_npy(subset_path(paths[member]), subset)
            # Every rank takes part in saving; rank 0 writes.
            with atomic_write(paths[member]) if trainer.is_global_zero else nullcontext(paths[member]) as part:
                trainer.save_checkpoint(part, weights_only=True)
            del trainer
            advance(1)
            check()
    return paths, len(missing)


def _require_same_weights(
    recipe: Recipe, datamodule: L.LightningDataModule, plan: SubsetPlan, member: int, path: Path, weights_only: bool
) -> None:
    """Train a stored member again; its weights may differ from the stored ones by little of what training changes."""
    seed = plan.training_seed(member)
    model = recipe(seed)[0]
    start = _flat(model)
    Checkpoint.of(path, model, weights_only=weights_only).load_into(model)
    stored = _flat(model)
    del model
    require_repeatable(
        stored,
        lambda: _flat(train_on_subset(recipe, datamodule, plan.subset(member), seed)[0]),
        rms(stored - start),
        what=f"the weights of {path}",
        remedy="use another run directory",
    )


def _flat(model: L.LightningModule) -> npt.NDArray[np.float32]:
    """The values of all parameters, (p,)."""
    return torch.cat([each.detach().float().cpu().flatten() for each in model.parameters()]).numpy()


def checkpoint_paths(folder: Path, size: int) -> list[Path]:
    """Return the files in which `train_ensemble` keeps its members."""
    return [folder / f"{member:02d}.ckpt" for member in range(size)]


@contextmanager
def _restricted(
    datamodule: L.LightningDataModule, subset: npt.NDArray[np.int64], batches_seed: int | None
) -> Iterator[None]:
    # On the instance, so that hooks, validation data and everything else stay the user's own.
    whole = datamodule.train_dataloader
    datamodule.train_dataloader = lambda: _subset_loader(whole(), subset, batches_seed)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del datamodule.train_dataloader


class RemainingBatches(BatchSampler):
    """The batches of the whole training set, without the samples that were removed; a batch of which nothing is left is skipped.

    The order is drawn from a generator of its own, because dropout in smaller batches would change the global one. `subset` (s,)
    are the positions of the samples that remain.
    """

    def __init__(self, loader: DataLoader, subset: npt.NDArray[np.int64], seed: int) -> None:
        shuffled = RandomSampler(loader.dataset, generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
        super().__init__(
            shuffled if isinstance(loader.sampler, RandomSampler) else loader.sampler,
            loader.batch_size or 1,
            loader.drop_last,
        )
        self._remain = set(subset.tolist())

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            remaining = [position for position in batch if position in self._remain]
            if remaining:
                yield remaining


def _subset_loader(loader: DataLoader, subset: npt.NDArray[np.int64], batches_seed: int | None) -> DataLoader:
    if type(loader.sampler) not in (RandomSampler, SequentialSampler):
        raise DataError(
            f"training on random subsets needs a loader that shuffles or keeps the order; this one draws samples with "
            f"{type(loader.sampler).__name__}. Train the checkpoints yourself, name them under checkpoints, and ask for no evaluation that "
            "retrains models (--evaluation.models 0)."
        )
    kept = {
        "num_workers": loader.num_workers,
        "collate_fn": WithoutText.wrap(loader.collate_fn),  # as the samples are read for attribution
        "pin_memory": loader.pin_memory,
        "persistent_workers": loader.persistent_workers,
        "multiprocessing_context": loader.multiprocessing_context,
    }
    if batches_seed is not None:
        return DataLoader(loader.dataset, batch_sampler=RemainingBatches(loader, subset, batches_seed), **kept)
    return DataLoader(
        Subset(loader.dataset, subset.tolist()),
        batch_size=loader.batch_size,
        shuffle=isinstance(loader.sampler, RandomSampler),
        drop_last=loader.drop_last,
        **kept,
    )
