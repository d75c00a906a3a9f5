"""A recorded run, step by step, forward."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer
from typing_extensions import Self

from trak_lightning.authoring import AttributionData
from trak_lightning.errors import IncompatibleRunError, UnsupportedModelError
from trak_lightning_replay.double import doubled, in_double
from trak_lightning_replay.optimizers import RULES
from trak_lightning_replay.recording import Recording, read_state, seed_step, state_path


class Snapshot(NamedTuple):
    """The state before a step: of each parameter its value, its optimizer state, and its number of steps so far."""

    values: list[Tensor]
    state: list[list[Tensor]]
    counts: list[int]


class Trajectory:
    """Runs the steps of a recording with the module itself and PyTorch's own optimizer.

    Use it as a context: afterwards, the module, the random number generators and the number of threads are as before.

    Raises:
        IncompatibleRunError: the module or the data are not those of the recording.
    """

    def __init__(self, module: L.LightningModule, data: AttributionData, recording: Recording, folder: Path) -> None:
        self.module = module
        self.data = data
        self.recording = recording
        self.folder = folder
        parameters = dict(module.named_parameters())
        names = [name for group in recording.groups for name in group]
        if missing := [name for name in names if name not in parameters]:
            raise IncompatibleRunError(
                f"{type(module).__name__} has no parameter {missing[0]}, which was trained in the recording {folder}. Give the "
                "module that was recorded."
            )
        if len(data) != recording.num_samples:
            raise IncompatibleRunError(
                f"the data have {len(data)} samples, and the recording {folder} was made with {recording.num_samples}. Give the loader "
                "that was recorded."
            )
        self._double = recording.precision == "64-true"
        self.names = names
        self.parameters = [parameters[name] for name in names]
        self.rule = next(rule for kind, rule in RULES.items() if kind.__name__ == recording.optimizer)
        kind = next(kind for kind in RULES if kind.__name__ == recording.optimizer)
        self.optimizer: Optimizer = kind(  # type: ignore[call-arg]
            [{"params": [parameters[name] for name in group]} for group in recording.groups], lr=0.0
        )

    def __enter__(self) -> Self:
        self._precision = in_double(self.module) if self._double else nullcontext()
        self._precision.__enter__()
        self._weights = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self._training = {name: each.training for name, each in self.module.named_modules()}
        self._required = [parameter.requires_grad for parameter in self.module.parameters()]
        self._gradients = [parameter.grad for parameter in self.module.parameters()]
        numpy = np.random.get_state()  # noqa: NPY002
        self._random = torch.get_rng_state(), numpy, random.getstate(), torch.get_num_threads()
        torch.set_num_threads(self.recording.threads)
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.module.load_state_dict(self._weights)
        self._precision.__exit__(kind, error, traceback)
        for name, each in self.module.named_modules():
            each.training = self._training[name]
        for parameter, required, gradient in zip(
            self.module.parameters(), self._required, self._gradients, strict=True
        ):
            parameter.requires_grad_(required)
            parameter.grad = gradient
        generator, numpy, python, threads = self._random
        torch.set_rng_state(generator)
        np.random.set_state(numpy)  # noqa: NPY002
        random.setstate(python)
        torch.set_num_threads(threads)

    def load(self, step: int) -> None:
        """Set module and optimizer to a stored state."""
        stored = read_state(state_path(self.folder, step))
        self.module.load_state_dict(stored["state_dict"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.train_mode()

    def train_mode(self) -> None:
        """Put every module into the mode that it was trained in."""
        evaluating = set(self.recording.evaluating)
        for name, each in self.module.named_modules():
            each.training = name not in evaluating

    def batch(self, step: int) -> Any:
        """The batch of a step, on the device of the module."""
        return self.moved(self.data, self.recording.batches[step])

    def moved(self, data: AttributionData, positions: list[int]) -> Any:
        """Samples of a dataset as a batch on the device of the module, in its precision."""
        batch = data.moved(positions, self.module, self.parameters[0].device)
        return doubled(batch) if self._double else batch

    def snapshot(self) -> Snapshot:
        """Copy the present parameters and optimizer state; state that is not there yet is zero."""
        states = [self.optimizer.state.get(parameter, {}) for parameter in self.parameters]
        counts = [int(state.get("step", len(state) > 0)) for state in states]
        return Snapshot(
            [parameter.detach().clone() for parameter in self.parameters],
            [
                [_copy(state.get(name), parameter) for name in self.rule.state]
                for state, parameter in zip(states, self.parameters, strict=True)
            ],
            counts,
        )

    def step(self, step: int, loss: Callable[[Any], Tensor] | None = None) -> float:
        """Run one step of the training and return its loss: that of ``training_step``, or another function of the batch."""
        batch = self.batch(step)
        seed_step(self.recording.seed, step)
        self.optimizer.zero_grad()
        with _silent(self.module):
            found = loss(batch) if loss else _training_loss(self.module, batch, self.recording.numbers[step])
            found.backward()
        self._clip()
        for group, options in zip(self.optimizer.param_groups, self.recording.options_at(step), strict=True):
            group.update({name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})
        self.optimizer.step()
        return float(found.detach())

    def require_same_bits(self, steps: range) -> list[Snapshot]:
        """Run the steps of a segment again and return the snapshot before each.

        Raises:
            IncompatibleRunError: a loss, or the state at the end, differs from the training; says where.
        """
        self.load(steps.start)
        snapshots = []
        for step in steps:
            snapshots.append(self.snapshot())
            loss, recorded = self.step(step), self.recording.losses[step]
            if loss != recorded and not loss == recorded != recorded:
                raise IncompatibleRunError(self._differs(f"the loss of step {step} is {loss!r}, and was {recorded!r}"))
        stored = read_state(state_path(self.folder, steps.stop))["state_dict"]
        for name, value in self.module.state_dict().items():
            if not torch.equal(value.cpu(), stored[name]):
                raise IncompatibleRunError(self._differs(f"after step {steps.stop - 1}, {name} has other bits"))
        return snapshots

    def _differs(self, what: str) -> str:
        return (
            f"the replay of {self.folder} differs from the training: {what}. Samples, code, libraries and machine must be those of "
            "the training, and nothing but training_step and the optimizer may change the model: no averaging of weights, no "
            "gradient hooks, no optimizer_step of your own."
        )

    def _clip(self) -> None:
        value = self.recording.clip_value
        if value and self.recording.clip_algorithm == "value":
            clip_grad_value_(self.parameters, value)
        elif value:
            clip_grad_norm_(self.parameters, value)


def _copy(state: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if state is None else state.detach().clone()


def _training_loss(module: L.LightningModule, batch: Any, number: int) -> Tensor:
    try:
        found = module.training_step(batch, number)
    except RuntimeError as error:
        if "Trainer" not in str(error):
            raise
        raise UnsupportedModelError(
            f"training_step of {type(module).__name__} uses its Trainer ({error}), and a replay has none. Keep what it needs in the "
            "module."
        ) from error
    loss: Tensor = found["loss"] if isinstance(found, Mapping) else found  # type: ignore[assignment]
    return loss


@contextmanager
def _silent(module: L.LightningModule) -> Iterator[None]:
    """Let ``self.log`` do nothing: a replay has no Trainer to log to."""
    names: Sequence[str] = ("log", "log_dict")
    for name in names:
        setattr(module, name, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        for name in names:
            delattr(module, name)
