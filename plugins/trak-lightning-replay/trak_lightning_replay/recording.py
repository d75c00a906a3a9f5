"""What a recorded run leaves in its folder."""

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from trak_lightning.authoring import atomic_write, derive_seed
from trak_lightning.errors import CorruptFileError, DataError, IncompleteRunError

FILE = "recording.json"
Losses = Callable[[L.LightningModule, Any], Tensor]


def losses_of(module: L.LightningModule, losses: Losses | None) -> Losses:
    """Return `losses`, or the method of that name of the module.

    Raises:
        DataError: there is neither.
    """
    own: Any = getattr(module, "losses", None)
    if losses is None and not callable(own):
        raise DataError(
            f"the loss of single samples is needed: give {type(module).__name__} a method losses(batch) that returns (B,), and let "
            "training_step return its mean; or pass losses=function(module, batch), to Record and to Replay."
        )
    return losses or (lambda module, batch: own(batch))


@dataclass(frozen=True)
class Recording:
    """The description of a run, as ``recording.json``; the states lie next to it.

    ::

        recording.json       written when the training is over
        state-00000000.pt    parameters, buffers and optimizer state before step 0, and so on; the last one is the result
    """

    num_samples: int
    seed: int
    """Every step t begins by seeding all random number generators with a hash of this seed and t."""
    every: int
    """Steps between two stored states."""
    batches: list[list[int]]
    """The positions of the samples of each step."""
    numbers: list[int]
    """The number of each step within its epoch, ``batch_idx``."""
    losses: list[float]
    """What ``training_step`` returned in each step."""
    optimizer: str
    groups: list[list[str]]
    """Names of the parameters in each group of the optimizer."""
    options: list[tuple[int, list[dict[str, Any]]]]
    """(t, the options of each group), for each step t in which they change."""
    clip_value: float | None
    clip_algorithm: str
    evaluating: list[str]
    """Names of the modules that were in eval mode during training."""
    precision: str
    threads: int
    """Threads of PyTorch: sums depend on their number."""

    @property
    def num_steps(self) -> int:
        return len(self.batches)

    @property
    def segments(self) -> list[range]:
        """The steps between consecutive stored states."""
        starts = range(0, self.num_steps, self.every)
        return [range(start, min(start + self.every, self.num_steps)) for start in starts]

    def options_at(self, step: int) -> list[dict[str, Any]]:
        """The options of each group of the optimizer in this step."""
        return next(groups for start, groups in reversed(self.options) if start <= step)

    def write(self, folder: Path) -> None:
        with atomic_write(folder / FILE) as part:
            part.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> "Recording":
        """Read a recording.

        Raises:
            IncompleteRunError: there is none, or its training did not end.
            CorruptFileError: the file is not what `write` wrote.
        """
        path = folder / FILE
        if not path.exists():
            reason = "its training did not end" if folder.exists() else "there is no such folder"
            raise IncompleteRunError(
                f"there is no recording in {folder}: {reason}. Train with Record({str(folder)!r})."
            )
        try:
            found = json.loads(path.read_text())
            return cls(**{field.name: found[field.name] for field in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(
                f"{path} is not a recording ({type(error).__name__}: {error}). Record the training again."
            ) from error


def state_path(folder: Path, step: int) -> Path:
    """The file with the state before this step."""
    return folder / f"state-{step:08d}.pt"


def write_state(path: Path, state: Any) -> None:
    with atomic_write(path) as part:
        torch.save(state, part)


def read_state(path: Path) -> Any:
    """Read what `write_state` wrote; nothing is unpickled but tensors and plain values.

    Raises:
        CorruptFileError: the file is missing or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file makes torch.load raise almost any exception.
    except Exception as error:
        raise CorruptFileError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Record the training again."
        ) from error


def seed_step(seed: int, step: int) -> None:
    """Seed PyTorch, NumPy and Python for one step of the training."""
    derived = derive_seed(seed, "step", step)
    torch.manual_seed(derived)
    np.random.seed(derived % 2**32)  # noqa: NPY002 (user code draws from the global generator)
    random.seed(derived)
