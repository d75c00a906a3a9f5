"""Name the cause of a row that depends on its batch: the collate function, a module that mixes samples, or random numbers."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from trak_lightning.data.collation_check import differences
from trak_lightning.data.samples import SampleBatch
from trak_lightning.data.trees import flatten
from trak_lightning.errors import SampleDependenceError, docs_page
from trak_lightning.extractors.state import without_fast_path
from trak_lightning.model.dtensor import any_sharded
from trak_lightning.tasks.base import Task, batch_of


class SamplePosition(NamedTuple):
    """Where a sample is."""

    in_dataset: int
    position: int
    """In the batch."""
    batch_size: int


def refuse(
    model: nn.Module, task: Task, place: SamplePosition, error: float, alone: SampleBatch, batch: SampleBatch
) -> NoReturn:
    """Raise an error that names what the collate function changes, or the module that mixes samples or draws random numbers.

    Raises:
        SampleDependenceError: always.
    """
    sample, position, size = place
    if size == 1:
        raise random_output(model, task, sample, error, batch)
    collated = differences(batch.data, [alone.data], [position], size) if alone.size == 1 else {}
    other = [
        name for name, differs in batch.differs.items() if differs[position]
    ]  # also where samples are concatenated
    if collated:
        what = (
            f"In this batch, the collate function makes something else of it than alone (in {', '.join(list(collated)[:3])}): it may "
            "reorder, replace or drop samples, or compute something from all of them. Let it keep the samples in their order, each as "
            "it is alone"
        )
    else:
        what = (
            f"{_culprit(model, task, alone, batch, position)}. Likely causes: random layers that ignore model.eval() (F.dropout without "
            "training=self.training), batch statistics, a model output that mixes samples, padding that is not masked"
            + (
                f", or the collate function, which makes other entries of it than alone ({', '.join(other[:3])})"
                if other
                else ""
            )
        )
    way = "batch_size=1" if any_sharded(model.parameters()) else "extractor='iterative'"
    raise SampleDependenceError(
        f"the output or gradient of sample {sample} in a batch of one differs by {error:.{1 if error >= 1e-3 else 4}%} from that in a batch of {size}, so "
        f"attributions would depend on the batch. {what}. To attribute every sample as in a batch of one, use {way}."
    )


def random_output(model: nn.Module, task: Task, sample: int, error: float, batch: SampleBatch) -> SampleDependenceError:
    """The error for a sample whose output differs between two passes over the same batch."""
    return SampleDependenceError(
        f"the output or gradient of sample {sample} differs by {error:.{1 if error >= 1e-3 else 4}%} when it is computed again, so attributions would be "
        f"random. {_culprit(model, task, batch, batch, 0)}. Likely cause: random layers that ignore model.eval() (F.dropout "
        "without training=self.training)."
    )


def _culprit(model: nn.Module, task: Task, alone: SampleBatch, batch: SampleBatch, position: int) -> str:
    with suppress(Exception):
        if found := _first_difference(model, task, alone, batch, position):
            return found
    return "No module was found to cause this: check the task, and code between modules"


def _first_difference(
    model: nn.Module, task: Task, alone: SampleBatch, batch: SampleBatch, position: int
) -> str | None:
    """Describe the first module whose output for a sample is random, or depends on the batch that the sample is in."""
    runs = [_calls(model, task, each) for each in (batch, batch, alone)]
    names = {module: name or "the model" for name, module in model.named_modules()}

    def depends(many: list[Tensor], one: list[Tensor]) -> bool:
        return any(
            len(each) == batch.size and each[position].shape == lone.shape[1:] and not _close(each[position], lone[0])
            for each, lone in zip(many, one, strict=False)
            if each.ndim and lone.ndim and len(lone) == 1
        )

    for once, twice, single in zip(*runs, strict=False):
        what = f"{names[once.module]} ({type(once.module).__name__})"
        if any(
            one.shape != two.shape or not _close(one, two) for one, two in zip(once.output, twice.output, strict=False)
        ):
            return (
                f"The output of {what} differs between two runs on the same batch: it draws random numbers (draw them in the dataset, "
                f"from a generator seeded by the sample's index: {docs_page('recipes', 'Diffusion')}), or keeps something between calls that is neither a "
                "buffer nor an attribute of a module"
            )
        if depends(once.inputs, single.inputs):
            return (
                f"What is given to {what} differs for this sample already: code before it mixes samples, such as a mean, norm or softmax over "
                "all of them, or over the nodes of all graphs"
            )
        if depends(once.output, single.output):
            return f"The first module whose output for this sample differs is {what}"
    return None


class _Call(NamedTuple):
    """Floating-point tensors that a module was given and returned, on the CPU to save GPU memory."""

    module: nn.Module
    inputs: list[Tensor]
    output: list[Tensor]


def _calls(model: nn.Module, task: Task, batch: SampleBatch) -> list[_Call]:
    """The calls of all modules, in the order in which they return."""
    found: list[_Call] = []

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        found.append(_Call(module, _kept((args, kwargs)), _kept(output)))

    with _hooked(model, note), torch.no_grad(), batch_of(batch.size):
        task.output(model, batch.data)
    return found


@contextmanager
def _hooked(model: nn.Module, hook: Any) -> Iterator[None]:
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in model.modules()]
    try:
        with without_fast_path():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _kept(tree: Any) -> list[Tensor]:
    leaves = flatten(tree)[0]
    return [leaf.detach().cpu().clone() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _close(one: Tensor, two: Tensor) -> bool:
    tolerance = 1e-3 if one.dtype in (torch.float32, torch.float64) else 0.1
    scale = float(one.abs().max()) if one.numel() else 0.0
    return bool(torch.allclose(one, two, rtol=tolerance, atol=tolerance * scale, equal_nan=True))
