"""A Lightning callback that makes a training run replayable."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import callbacks
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Sampler

from trak_lightning.authoring import AttributionData
from trak_lightning.errors import DataError, IncompatibleRunError, SampleDependenceError, UnsupportedModelError
from trak_lightning_replay.optimizers import require_differentiable
from trak_lightning_replay.recording import FILE, Losses, Recording, losses_of, seed_step, state_path, write_state
from trak_lightning_replay.trajectory import Trajectory

PRECISIONS = ("32-true", "64-true")

AVERAGING = tuple(
    getattr(callbacks, name) for name in ("StochasticWeightAveraging", "WeightAveraging") if hasattr(callbacks, name)
)
"""Callbacks that change the weights when the training ends; early versions of Lightning have one of them."""


class Record(L.Callback):
    """Record what `Replay` needs: the order of samples, the seeds, the options of the optimizer, and √T states.

    The random number generators are seeded anew in every step. When the training ends, its first segment is run again and
    must give the same bits.

    >>> trainer = L.Trainer(max_epochs=5, callbacks=[Record("runs/x/recording")])

    Args:
        folder: where the recording is kept; must not hold one already.
        every: steps between two stored states; √T if None. `Replay` keeps the states of so many steps in memory.
        seed: of every random number that is drawn during training.
        losses: as for `Replay`, which will need it; the method ``losses(batch)`` of the module if None.

    Raises:
        IncompatibleRunError: the folder holds a complete recording; or, when the training ends, the replay differs from it.
        UnsupportedModelError: when the training starts: it cannot be replayed; names what stands in the way.
        DataError: when the training starts: no `losses`; samples that differ each time they are read, or a loader whose order cannot be recorded.
    """

    def __init__(
        self, folder: str | os.PathLike[str], every: int | None = None, seed: int = 0, *, losses: Losses | None = None
    ) -> None:
        if every is not None and every < 1:
            raise DataError(f"every must be a positive number of steps, got {every}")
        self.folder = Path(folder)
        self._require_room()  # before Lightning's part of a traceback
        self._every = every
        self._seed = seed
        self._given = losses
        self._order: _Order
        self._data: AttributionData
        self._batches: list[list[int]] = []
        self._numbers: list[int] = []
        self._losses: list[float] = []
        self._options: list[tuple[int, list[dict[str, Any]]]] = []
        self._buffers: dict[str, Tensor] = {}

    def _require_room(self) -> None:
        if (self.folder / FILE).exists():
            found = Recording.read(self.folder)
            raise IncompatibleRunError(
                f"{self.folder} holds a complete recording: {found.num_steps} steps over {found.num_samples} training samples. To use it, "
                f"leave out the training: Replay(module, loader, {str(self.folder)!r}). To record again, choose another folder or "
                "delete this one."
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._require_room()
        _require_replayable(trainer, pl_module)
        losses_of(pl_module, self._given)
        loader = _only_loader(trainer)
        self._data = AttributionData.of(loader)
        self._data.fingerprint()  # which refuses samples that differ each time they are read
        self._every = self._every or max(1, math.isqrt(int(trainer.estimated_stepping_batches)))
        self._order = _Order(loader)
        self._evaluating = [name for name, module in pl_module.named_modules() if not module.training]
        self._buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = len(self._batches)
        if step == 1:
            _require_fixed(pl_module, self._buffers)
        if step % (self._every or 1) == 0:
            self._store(trainer, pl_module, step)
        self._batches.append(self._order.batch(trainer.current_epoch, batch_idx))
        self._numbers.append(batch_idx)
        seed_step(self._seed, step)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        found = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        if not self._options or self._options[-1][1] != found:
            self._options.append((len(self._batches) - 1, found))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not outputs:
            raise UnsupportedModelError(
                f"training_step of {type(pl_module).__name__} returned no loss in step {len(self._losses)}. A replayable run has one in "
                "every step."
            )
        self._losses.append(float(outputs["loss"]))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._order.release()
        self._store(trainer, pl_module, len(self._batches))
        (optimizer,) = trainer.optimizers
        names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        recording = Recording(
            num_samples=len(self._data),
            seed=self._seed,
            every=self._every or 1,
            batches=self._batches,
            numbers=self._numbers,
            losses=self._losses,
            optimizer=type(optimizer).__name__,
            groups=[[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups],
            options=self._options,
            clip_value=trainer.gradient_clip_val,
            clip_algorithm=str(getattr(trainer.gradient_clip_algorithm, "value", None) or "norm"),
            evaluating=self._evaluating,
            precision=str(trainer.precision),
            threads=torch.get_num_threads(),
        )
        with Trajectory(pl_module, self._data, recording, self.folder) as trajectory:
            trajectory.require_same_bits(recording.segments[0])
        recording.write(self.folder)

    def _store(self, trainer: L.Trainer, module: L.LightningModule, step: int) -> None:
        (optimizer,) = trainer.optimizers
        write_state(
            state_path(self.folder, step), {"state_dict": module.state_dict(), "optimizer": optimizer.state_dict()}
        )


class _Order:
    """Listens to the sampler of a loader."""

    def __init__(self, loader: Any) -> None:
        self._size = loader.batch_size or 1
        self._sampler = loader.batch_sampler
        self._inner = self._sampler.sampler
        self._epochs: list[list[int]] = []
        self._sampler.sampler = _Listening(self._inner, self._epochs)

    def batch(self, epoch: int, number: int) -> list[int]:
        """The positions of the samples of a batch."""
        return self._epochs[epoch][number * self._size : (number + 1) * self._size]

    def release(self) -> None:
        self._sampler.sampler = self._inner


class _Listening(Sampler[int]):
    def __init__(self, inner: Any, epochs: list[list[int]]) -> None:
        self._inner = inner
        self._epochs = epochs

    def __iter__(self) -> Iterator[int]:
        drawn: list[int] = []
        self._epochs.append(drawn)
        for position in self._inner:
            drawn.append(int(position))
            yield position

    def __len__(self) -> int:
        return len(self._inner)


def _only_loader(trainer: L.Trainer) -> DataLoader:
    loader = trainer.train_dataloader
    if isinstance(loader, DataLoader) and loader.num_workers:
        raise DataError(
            f"the training loader has num_workers={loader.num_workers}, which draw the order of the samples before the training starts, "
            "where it cannot be recorded. Use num_workers=0."
        )
    if not isinstance(loader, DataLoader) or loader.batch_size is None:
        raise DataError(
            f"the training data come from {type(loader).__name__}, whose order cannot be recorded. Give one DataLoader with "
            "batch_size."
        )
    return loader


def _require_replayable(trainer: L.Trainer, module: L.LightningModule) -> None:
    def refuse(what: str, remedy: str) -> None:
        raise UnsupportedModelError(f"this training cannot be replayed: {what}. {remedy}")

    if trainer.global_step:
        refuse(f"it resumes at step {trainer.global_step}", "Record a run from its first step.")
    if trainer.world_size != 1:
        refuse(f"it has {trainer.world_size} processes", "Train with devices=1.")
    if str(trainer.precision) not in PRECISIONS:
        refuse(f"its precision is {trainer.precision}", f"Train with precision {' or '.join(PRECISIONS)}.")
    if trainer.accumulate_grad_batches != 1:
        refuse(f"accumulate_grad_batches is {trainer.accumulate_grad_batches}", "Use a larger batch size.")
    if not module.automatic_optimization:
        refuse(f"{type(module).__name__} has manual optimization", "Use automatic optimization.")
    if len(trainer.optimizers) != 1:
        refuse(f"it has {len(trainer.optimizers)} optimizers", "Use one.")
    require_differentiable(trainer.optimizers[0])
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, AVERAGING):
            refuse(f"{type(callback).__name__} averages its weights", "Leave that callback out.")
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for group in trainer.optimizers[0].param_groups:
        for parameter in group["params"]:
            if id(parameter) not in names:
                refuse(
                    f"the optimizer trains a tensor that is no parameter of {type(module).__name__}", "Leave it out."
                )
            if not parameter.requires_grad:
                refuse(
                    f"the optimizer was given {names[id(parameter)]}, which is frozen",
                    "Give it those that train: [p for p in self.parameters() if p.requires_grad].",
                )
    for name, each in module.named_modules():
        if isinstance(each, _BatchNorm) and each.training and each.track_running_stats:
            raise SampleDependenceError(
                f"{name} ({type(each).__name__}) averages statistics over steps, through which samples act without a gradient. "
                "Train with GroupNorm or LayerNorm, or with this module in eval mode."
            )


def _require_fixed(module: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, buffer in module.named_buffers():
        if not torch.equal(buffer, buffers[name]):
            raise UnsupportedModelError(
                f"the buffer {name} changed in the first step, through which samples act without a gradient. Make it a parameter, "
                "or leave it out."
            )
