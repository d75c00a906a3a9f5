"""Labels drawn from the model itself: their gradients are those whose second moment is the Fisher matrix."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trak_lightning.run.meaning import Meaning
from trak_lightning.seeds import derive_seed
from trak_lightning.tasks.base import Task
from trak_lightning.tasks.margin import is_wrapped, margin

_REMEMBERED = 4096
"""Samples whose labels are kept, so that a batch is audited with the labels that its rows have."""


class DrawnLabels(Task):
    """``f = log p(y)`` for labels y drawn from the model's own predictions: ``Σ_t log p_t(y_t)`` over the tokens of a sequence.

    ``E ∇f ∇fᵀ`` is the Fisher matrix, which is the Gauss-Newton matrix of the cross-entropy. q = 1 and r = 0. A label is a
    function of the seed, the sample's position in its dataset and the number of the token, not of the batch or the device;
    but where the model's probabilities round differently, it may be another one.

    Batches are pairs of a batch and the positions of its samples: see `positioned`.

    Args:
        task: says what the model predicts, in `Task.class_problems`.
        number: of the draw.
        seed: of the run.

    Raises:
        SettingsError: `task` does not say how a label is drawn.
    """

    loss_function: ClassVar[str] = "linear"
    meaning = Meaning("log-probability of labels drawn from the model")

    def __init__(self, task: Task, number: int, seed: int) -> None:
        task.require_class_problems()
        self._task = task
        self.number = number
        self.seed = seed
        self._key = derive_seed(seed, "draw", number)
        self._labels: dict[int, Tensor] = {}

    @property
    def state(self) -> dict[str, Any]:
        return {**super().state, "task": self._task.state}

    def output(self, model: nn.Module, batch: Any) -> Tensor:
        given, positions = batch
        logits, counted, scale = self._task.class_problems(model, given)
        labels = self._drawn(logits.detach(), counted, positions)
        log_p = torch.nn.functional.logsigmoid(margin(logits, labels))
        return torch.where(counted, log_p, 0).sum(1) * scale

    def _drawn(self, logits: Tensor, counted: Tensor, positions: Tensor) -> Tensor:
        """Labels (B, T): those that a sample had before, if it is remembered."""
        if is_wrapped(logits) or is_wrapped(positions):
            return self._draw(logits, counted, positions)
        samples = positions.tolist()
        if any(sample not in self._labels for sample in samples):
            if len(self._labels) > _REMEMBERED:
                self._labels.clear()
            drawn = self._draw(logits, counted, positions)
            for sample, labels, there in zip(samples, drawn, counted, strict=True):
                self._labels.setdefault(sample, labels[there])
        found = torch.zeros_like(counted, dtype=torch.int64)
        found[counted] = torch.cat([self._labels[sample] for sample in samples])
        return found

    def _draw(self, logits: Tensor, counted: Tensor, positions: Tensor) -> Tensor:
        # Tokens are numbered among those that count, so that padding on either side changes nothing.
        keys = _mixed(positions.to(logits.device).unsqueeze(1) * _STEP + self._key) + counted.cumsum(1) * _STEP
        uniform = (_shifted(_mixed(keys), 40) + 0.5) * 2.0**-24
        below = logits.float().softmax(-1).cumsum(-1) < uniform.unsqueeze(-1)
        return below.sum(-1).clamp(max=logits.shape[-1] - 1)


def positioned(task: Task, batch: Any, positions: Tensor) -> Any:
    """Return the batch that `task` expects: with the positions (B,) of its samples for `DrawnLabels`, and as it is for others."""
    return (batch, positions) if isinstance(task, DrawnLabels) else batch


# SplitMix64 (Steele, Lea and Flood 2014) in the signed integers that torch has, and that overflow as unsigned ones do.
_STEP, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685


def _mixed(values: Tensor) -> Tensor:
    values = (values ^ _shifted(values, 30)) * _FIRST
    values = (values ^ _shifted(values, 27)) * _SECOND
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """``values >> bits`` of unsigned integers."""
    return (values >> bits) & (2 ** (64 - bits) - 1)
