"""Name the samples for which the model or the task raises an error."""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.data.trees import deep_leaves
from trak_lightning.errors import DataError, TrakError, first_line
from trak_lightning.featurize.batch_audit import outputs
from trak_lightning.model.autocast import is_cast
from trak_lightning.model.dtensor import any_sharded
from trak_lightning.tasks.base import Task


def blame(
    model: nn.Module, task: Task, batch: SampleBatch, index: Tensor, error: Exception, first: Callable[[], SampleBatch]
) -> None:
    """Explain an `error` of the user's code or the task: some samples cause it alone, or it is about types of numbers.

    Args:
        model: the user's module.
        task: what is differentiated.
        batch: the batch.
        index: the positions of its samples in the dataset, (B,).
        error: what was raised for it.
        first: returns the first sample of the dataset, in a batch of one.

    Raises:
        DataError: names the first of the samples, or the types of the batch and the model.
    """
    if any_sharded(model.parameters()) or isinstance(error, torch.OutOfMemoryError):
        return
    if "device-side assert" in str(error):
        raise DataError(
            f"the GPU met an index that is out of range, such as a label or the index of an embedding, in a batch that begins with sample "
            f"{int(index[0])}. It does not say which: run the same on the CPU (--trainer.accelerator cpu), where the sample is named."
        ) from error
    failing = {
        position: alone for position in range(batch.size) if (alone := _error(model, task, batch.fetch([position])))
    }
    if failing and (len(failing) < batch.size or (int(index[0]) > 0 and _error(model, task, first()) is None)):
        position, alone = min(failing.items())
        others = f", and in {len(failing) - 1} more of this batch" * (len(failing) > 1)
        what = str(alone)
        if not isinstance(alone, TrakError):
            what = (
                f"{type(alone).__name__}: {first_line(alone)}. It holds {held(batch.fetch([position]), values=True)}."
            )
        raise DataError(f"in sample {int(index[position])} of the dataset{others}: {what}") from (
            alone.__cause__ if isinstance(alone, TrakError) else alone
        )
    _require_types(model, batch, error)


def _error(model: nn.Module, task: Task, one: SampleBatch) -> Exception | None:
    try:
        outputs(model, task, one)
    except Exception as error:
        return error
    return None


def held(batch: SampleBatch, *, values: bool = False) -> str:
    """The types and shapes of the tensors in a batch; with the least and the largest of their `values`."""
    found = []
    for leaf in deep_leaves(batch.data):
        if isinstance(leaf, Tensor):
            known = (
                values
                and leaf.layout == torch.strided
                and not leaf.is_nested
                and leaf.numel()
                and not leaf.is_complex()
            )
            extent = f" of {leaf.min().item():.4g} … {leaf.max().item():.4g}" if known else ""
            shape = f"nested, of {leaf.size(0)}" if leaf.is_nested else tuple(leaf.shape)
            found.append(f"{str(leaf.dtype).removeprefix('torch.')} {shape}{extent}")
    return ", ".join(found)


def _require_types(model: nn.Module, batch: SampleBatch, error: Exception) -> None:
    known = r"dtype|scalar type|[Ii]nput type" + "|not implemented for" * is_cast()
    if not isinstance(error, RuntimeError) or not re.search(known, str(error)):
        return
    computes = ", ".join(sorted({str(each.dtype).removeprefix("torch.") for each in model.parameters()}))
    remedy = "Convert the inputs in the dataset, as in x.float()."
    if is_cast():
        remedy = (
            "Autocast is on, and some operations return numbers of other types than the parameters have. If the model was not trained "
            "under it, use precision 32-true; else let the model convert, as in x.to(y.dtype)."
        )
    raise DataError(
        f"{type(model).__name__} has parameters of type {computes} and does not take this batch: {first_line(error).rstrip('.')}. The "
        f"batch holds {held(batch)}. {remedy}"
    ) from error
