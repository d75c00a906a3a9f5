"""One backward pass per sample: slow, but exact for every model and batch that autograd can differentiate."""

import torch
from torch import Tensor, nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import DataError
from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.extractors.state import gradients, parameters_of, requiring
from trak_lightning.gradients import DenseBlock, ParameterLayout, Sink
from trak_lightning.model.dtensor import require_whole
from trak_lightning.tasks.base import Task, batch_of


class Iterative(GradientExtractor):
    """Fetch, collate and differentiate one sample at a time. Memory: one gradient of size p.

    Makes no assumption about the form of a batch, nor about how the model treats several samples: works for lists, graphs,
    detection targets and experts with a capacity as for tensors. It is the reference for the other extractors.
    """

    one_by_one = True

    def extract(self, model: nn.Module, task: Task, batch: SampleBatch, layout: ParameterLayout, sink: Sink) -> Tensor:
        require_whole(model, "iterative")
        outputs = []
        for position in range(batch.size):
            one = batch if batch.size == 1 else batch.fetch([position])
            output, grads = sample_gradient(model, task, one, layout)
            outputs.append(output)
            samples = slice(position, position + 1)
            for slot, grad in zip(layout, grads, strict=True):
                if grad is not None:
                    sink(DenseBlock(slot.name, grad.unsqueeze(0), samples=samples))
        return torch.cat(outputs)


def sample_gradient(
    model: nn.Module, task: Task, one: SampleBatch, layout: ParameterLayout
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The output (1,) of a batch of one, and its gradient by parameter: None for those it does not depend on.

    Raises:
        DataError: the task does not return one number.
    """
    with requiring(model, layout.by_name), batch_of(1), torch.enable_grad():
        output = task.output(model, one.data)
        if not isinstance(output, Tensor) or output.numel() != 1:
            found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise DataError(
                f"the output of {type(task).__name__} for one sample must be one number; got {found}. If the collate function "
                "leaves out broken samples, remove them from the dataset: torch.utils.data.Subset(dataset, kept)."
            )
        parameters = list(parameters_of(model, layout.by_name).values())
        if not output.requires_grad:
            return output.detach().reshape(1), (None,) * len(parameters)
        grads = gradients(output.sum(), parameters, model)
    return output.detach().reshape(1), tuple(grads)
