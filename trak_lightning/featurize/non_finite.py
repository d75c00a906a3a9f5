"""Refuse rows that are not finite, and name the cause: weights, a value of the sample, its labels, or the precision."""

from contextlib import suppress
from itertools import chain

import torch
from torch import Tensor, nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.data.trees import deep_leaves
from trak_lightning.errors import DataError, NonFiniteGradientError
from trak_lightning.model.dtensor import any_sharded
from trak_lightning.tasks.base import Task, batch_of

_REMEDIES = {
    "16": "In 16-bit precision, numbers beyond ±65504 overflow: use --trainer.precision bf16-mixed or 32-true. If it still happens: ",
    "bf16": "Use --trainer.precision 32-true, since bfloat16 has only 8 significant bits. If it still happens: ",
}


def require_finite(
    columns: dict[str, Tensor], index: Tensor, batch: SampleBatch, model: nn.Module, task: Task, precision: str
) -> None:
    """Check the columns of a batch, (B, …) by name.

    Raises:
        NonFiniteGradientError: a number is not finite. Names the samples, and the cause for the first of them.
    """
    for name, values in columns.items():
        finite = values.isfinite().reshape(len(index), -1).all(dim=1).cpu()
        if not finite.all():
            samples = index[~finite].tolist()
            first = int((~finite).nonzero()[0])
            found = f"NaN or infinity in the {name} of {len(samples)} of {len(index)} samples: {samples[:10]}"
            found += ("…" if len(samples) > 10 else "") + " (positions in the dataset)"
            if any_sharded(model.parameters()):  # looking at them needs all ranks
                raise NonFiniteGradientError(f"{found}. Look at these samples, and at the weights, for invalid values.")
            if weights := _wrong_weights(model):
                raise NonFiniteGradientError(f"{weights} {found}.")
            remedy = _REMEDIES.get(precision.partition("-")[0], "")
            raise NonFiniteGradientError(f"{found}. {remedy}{cause(samples[0], batch.fetch([first]), model, task)}")


def _wrong_weights(model: nn.Module) -> str:
    """Say which parameter or buffer is at fault, if one is; buffers may hold infinity, such as masks."""
    parameters = ((f"parameter {name}", each.isfinite()) for name, each in model.named_parameters())
    buffers = ((f"buffer {name}", ~each.isnan()) for name, each in model.named_buffers())
    for name, right in chain(parameters, buffers):
        if not right.all():
            return (
                f"{name} of {type(model).__name__} holds NaN or infinity in {int((~right).sum())} of {right.numel()} entries: the weights "
                "are at fault and not the samples. Use a checkpoint from before training diverged. There is"
            )
    return ""


def cause(sample: int, alone: SampleBatch, model: nn.Module, task: Task) -> str:
    """Say what may be wrong with a sample, given in a batch of one, whose row is not finite though all weights are."""
    with suppress(Exception):
        try:
            with torch.no_grad(), batch_of(1):
                task.output(model, alone.data)
        except DataError as error:  # values are not looked at under vmap
            return f"Sample {sample}: {error}"
    largest = None
    for leaf in _numbers(alone):
        what = f"{str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape)}"
        if leaf.is_floating_point():
            if not (right := leaf.isfinite()).all():
                return f"Sample {sample} itself holds {float(leaf[~right][0])} ({what}): correct it, or leave it out of the dataset."
            largest = max(largest or (0.0, ""), (float(leaf.abs().max()), what))
        elif (label := int(leaf.reshape(-1)[0])) in (-100, -1, 255) and (leaf == label).all():
            return (
                f"All labels of sample {sample} are {label} ({what}). If that is an ignore_index, the mean of its losses is 0/0: leave the "
                "sample out of the dataset, or divide the sum of its losses by at least 1."
            )
    if largest is None:
        return "Look at these samples for invalid values."
    return (
        f"The largest number in sample {sample} is {largest[0]:.4g} ({largest[1]}), and the largest weight "
        f"{max(float(each.detach().abs().max()) for each in model.parameters() if each.numel()):.4g}. If the number is an outlier, scale or correct "
        "it, or leave the sample out of the dataset."
    )


def _numbers(batch: SampleBatch) -> list[Tensor]:
    leaves = [leaf for leaf in deep_leaves(batch.data) if isinstance(leaf, Tensor) and not leaf.is_nested]
    return [leaf for leaf in leaves if leaf.layout == torch.strided and leaf.numel() and not leaf.is_complex()]
