"""One backward pass a sample: slow, and right for every model that autograd can do."""

from typing import Any

import torch
from torch import Tensor, nn

from trak_lightning.data.samples import batch_size, take_sample
from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.gradients import DenseBlock, ParameterLayout, Sink
from trak_lightning.model.dtensor import require_whole
from trak_lightning.tasks.base import Task


class Iterative(GradientExtractor):
    """Loops over the samples of a batch. Memory: the gradient of the whole model for every sample, B·p.

    The reference for the other extractors, and a way out for models that they refuse.
    """

    def extract(self, model: nn.Module, task: Task, batch: Any, layout: ParameterLayout, sink: Sink) -> Tensor:
        require_whole(model, "iterative")
        size = batch_size(batch)
        parameters = [model.get_parameter(slot.name) for slot in layout]
        frozen = [parameter for parameter in parameters if not parameter.requires_grad]
        outputs, gradients = [], []
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            for sample in range(size):
                output = task.output(model, take_sample(batch, sample, size))
                gradients.append(torch.autograd.grad(output.sum(), parameters, allow_unused=True))
                outputs.append(output.detach())
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        for slot, grads in zip(layout, zip(*gradients, strict=True), strict=True):
            used = next((grad for grad in grads if grad is not None), None)
            if used is not None:
                filled = [torch.zeros_like(used) if grad is None else grad for grad in grads]
                sink(DenseBlock(slot.name, torch.stack(filled)))
        return torch.cat(outputs)
