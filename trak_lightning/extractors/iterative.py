"""One backward pass per sample: slow, but exact for every model and batch that autograd can differentiate."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import DataError
from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.extractors.state import kept_grads, parameters_of, requiring, taken_gradients
from trak_lightning.gradients import DenseBlock, ParameterLayout, Sink
from trak_lightning.model.dtensor import require_whole
from trak_lightning.tasks.base import Task, batch_of

_HELD = 2**20
"""Gradients of so many entries are held before they are passed on: a sink takes as long for one sample of a small model as for many."""

SampleGradient: TypeAlias = tuple[Tensor, tuple[Tensor | None, ...]]
"""The output (1,) of a batch of one, and its gradient by parameter: None for those it does not depend on."""


class Iterative(GradientExtractor):
    """Fetch, collate and differentiate one sample at a time. Memory: one gradient of size p, or a few MB of smaller ones.

    Makes no assumption about the form of a batch, nor about how the model treats several samples: works for lists, graphs,
    detection targets and experts with a capacity as for tensors. It is the reference for the other extractors.
    """

    one_by_one = True

    def extract(self, model: nn.Module, task: Task, batch: SampleBatch, layout: ParameterLayout, sink: Sink) -> Tensor:
        require_whole(model, "iterative")
        outputs: list[Tensor] = []
        held: list[tuple[Tensor | None, ...]] = []
        with differentiating(model, task, layout) as differentiate:
            for position in range(batch.size):
                output, grads = differentiate(batch if batch.size == 1 else batch.fetch([position]))
                outputs.append(output)
                held.append(grads)
                if len(held) * layout.numel >= _HELD or position == batch.size - 1:
                    _pass_on(held, slice(len(outputs) - len(held), len(outputs)), layout, sink)
                    held = []
        return torch.cat(outputs)


def _pass_on(held: Sequence[tuple[Tensor | None, ...]], samples: slice, layout: ParameterLayout, sink: Sink) -> None:
    """Give a sink the gradients of these samples, each by parameter."""
    for slot, grads in zip(layout, zip(*held, strict=True), strict=True):
        some = next((grad for grad in grads if grad is not None), None)
        if some is not None:
            every = [torch.zeros_like(some) if grad is None else grad for grad in grads]
            sink(DenseBlock(slot.name, torch.stack(every) if len(every) > 1 else some[None], samples=samples))


def sample_gradient(model: nn.Module, task: Task, one: SampleBatch, layout: ParameterLayout) -> SampleGradient:
    """Differentiate the output of a batch of one.

    Raises:
        DataError: the task does not return one number.
    """
    with differentiating(model, task, layout) as differentiate:
        return differentiate(one)


@contextmanager
def differentiating(
    model: nn.Module, task: Task, layout: ParameterLayout
) -> Iterator[Callable[[SampleBatch], SampleGradient]]:
    """A context that prepares the model for the gradients of any number of batches of one, and yields the function that computes one."""
    parameters = list(parameters_of(model, layout.by_name).values())

    def differentiate(one: SampleBatch) -> SampleGradient:
        for parameter in parameters:  # a forward pass may have frozen some
            if not parameter.requires_grad:
                parameter.requires_grad_(True)
        with batch_of(1), torch.enable_grad():
            output = task.output(model, one.data)
            if not isinstance(output, Tensor) or output.numel() != 1:
                raise _not_one_number(task, output)
            if not output.requires_grad:
                return output.detach().reshape(1), (None,) * len(parameters)
            grads = taken_gradients(output.sum(), parameters, model)
        return output.detach().reshape(1), tuple(grads)

    with requiring(model, layout.by_name), kept_grads(parameters):
        yield differentiate


def _not_one_number(task: Task, output: object) -> DataError:
    found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    return DataError(
        f"the output of {type(task).__name__} for one sample must be one number; got {found}. If the collate function "
        "leaves out broken samples, remove them from the dataset: torch.utils.data.Subset(dataset, kept)."
    )
