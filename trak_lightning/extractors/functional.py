"""Per-sample gradients of the whole model at once, with `torch.func`."""

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from trak_lightning.data.samples import batch_size, is_batched, over_samples
from trak_lightning.data.trees import flatten
from trak_lightning.errors import SettingsError, TrakError, UnsupportedModelError
from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.gradients import DenseBlock, ParameterLayout, Sink
from trak_lightning.model.dtensor import require_whole
from trak_lightning.tasks.base import Task


class Functional(GradientExtractor):
    """``vmap(grad(f))`` over the samples. Memory: the gradient of the whole model for `chunk_size` samples, and B·p.

    Needs a model that vmap can do: no ``.item()``, no control flow on values, no in-place change of unbatched buffers.

    Args:
        chunk_size: samples differentiated at a time; all if None.
    """

    def __init__(self, chunk_size: int | None = None) -> None:
        if chunk_size is not None and chunk_size < 1:
            raise SettingsError(f"chunk_size must be a positive number of samples, got {chunk_size}")
        self.chunk_size = chunk_size

    def extract(self, model: nn.Module, task: Task, batch: Any, layout: ParameterLayout, sink: Sink) -> Tensor:
        require_whole(model, "functional")
        size = batch_size(batch)
        leaves, rebuild = flatten(batch)
        batched = [position for position, leaf in enumerate(leaves) if is_batched(leaf, size)]
        attributed = {slot.name: model.get_parameter(slot.name).detach() for slot in layout}
        others = {
            name: tensor.detach()
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if name not in attributed
        }

        def output(parameters: dict[str, Tensor], *sample: Tensor) -> Tensor:
            one = list(leaves)
            for position, leaf in zip(batched, sample, strict=True):
                one[position] = leaf.unsqueeze(0)

            def stand_in(*args: Any, **kwargs: Any) -> Any:
                return functional_call(model, {**parameters, **others}, args, kwargs)

            return task.output(stand_in, rebuild(one))[0]  # type: ignore[arg-type]

        in_dims = (None, *(0 for _ in batched))
        samples = (leaves[position] for position in batched)
        try:
            gradients, outputs = over_samples(
                grad_and_value(output), attributed, *samples, in_dims=in_dims, chunk_size=self.chunk_size
            )
        except TrakError:
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"torch.func.vmap cannot differentiate {type(model).__name__} sample by sample: {str(error).splitlines()[0]} "
                "Use extractor='hooks', or 'iterative' as a last resort."
            ) from error
        for slot in layout:
            sink(DenseBlock(slot.name, gradients[slot.name]))
        return outputs.detach()
