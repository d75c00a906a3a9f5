"""Per-sample gradients of the whole model at once, with `torch.func`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from trak_lightning.data.samples import SampleBatch, over_samples
from trak_lightning.data.trees import flatten
from trak_lightning.errors import OneSampleAtATime, SettingsError, TrakError, UnsupportedModelError, first_line
from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.extractors.state import parameters_of, without_assigned_data
from trak_lightning.gradients import DenseBlock, ParameterLayout, Sink
from trak_lightning.model.dtensor import require_whole
from trak_lightning.tasks.base import Task, batch_of


class Functional(GradientExtractor):
    """``vmap(grad(f))`` over samples that were fetched and collated one by one. Memory: the gradient of the whole model for
    `chunk_size` samples, and B·p.

    Needs a model that vmap can run (no ``.item()``, no control flow on values, no in-place change of unbatched buffers), and
    samples that have equal shapes when each is collated by itself.

    Args:
        chunk_size: samples differentiated at a time; all if None.
    """

    def __init__(self, chunk_size: int | None = None) -> None:
        if chunk_size is not None and chunk_size < 1:
            raise SettingsError(f"chunk_size must be a positive number of samples, got {chunk_size}")
        self.chunk_size = chunk_size

    def extract(self, model: nn.Module, task: Task, batch: SampleBatch, layout: ParameterLayout, sink: Sink) -> Tensor:
        require_whole(model, "functional")
        _require_dense(model)
        each = [flatten(batch.fetch([position]).data)[0] for position in range(batch.size)]
        leaves, rebuild = flatten(batch.fetch([0]).data)
        batched = [position for position, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        stacked = _stacked(each, batched)
        attributed = {name: parameter.detach() for name, parameter in parameters_of(model, layout.by_name).items()}
        others = {
            name: tensor.detach()
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if name not in attributed
        }

        places = _places(model)

        def output(parameters: dict[str, Tensor], *sample: Tensor) -> Tensor:
            one = list(leaves)
            for position, leaf in zip(batched, sample, strict=True):
                one[position] = leaf

            def stand_in(*args: Any, **kwargs: Any) -> Any:
                values = {**parameters, **others}
                replaced = {place: values[name] for place, name in places.items()}
                return functional_call(model, replaced, args, kwargs, tie_weights=False)

            return task.output(stand_in, rebuild(one)).reshape(())  # type: ignore[arg-type]

        in_dims = (None, *(0 for _ in batched))
        try:
            with batch_of(1), without_assigned_data():
                gradients, outputs = over_samples(
                    grad_and_value(output), attributed, *stacked, in_dims=in_dims, chunk_size=self.chunk_size
                )
        except TrakError:
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"torch.func.vmap cannot differentiate {type(model).__name__} sample by sample: {first_line(error)} "
                "Use extractor='auto', or 'iterative' as a last resort."
            ) from error
        for slot in layout:
            sink(DenseBlock(slot.name, gradients[slot.name]))
        return outputs.detach()


def _places(model: nn.Module) -> dict[str, str]:
    """The name of the tensor in every place for a parameter or buffer. A module at two paths is one place: `functional_call`, given both,
    restores what it put there first, and leaves tensors of the transform in the model."""
    names = {tensor: name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    return {
        place: names[tensor]
        for path, module in model.named_modules()
        for place, tensor in (
            *module.named_parameters(path, recurse=False, remove_duplicate=False),
            *module.named_buffers(path, recurse=False, remove_duplicate=False),
        )
    }


def _require_dense(model: nn.Module) -> None:
    """Refuse embeddings with sparse gradients, which vmap does not know."""
    sparse = [name for name, module in model.named_modules() if getattr(module, "sparse", False) is True]
    if sparse:
        raise UnsupportedModelError(
            f"module {sparse[0]!r} has sparse=True, and the functional extractor cannot compute sparse gradients. Use sparse=False, which "
            "gives the same numbers, or extractor='auto' or 'iterative'."
        )


def _stacked(each: Sequence[list[Any]], batched: Sequence[int]) -> list[Tensor]:
    """The tensors of all samples, (B, *shape of that tensor in a batch of one)."""
    for position, leaf in enumerate(each[0]):
        for other in each[1:]:
            same = len(other) == len(each[0]) and type(other[position]) is type(leaf)
            if same and isinstance(leaf, Tensor):
                kinds = {(each.dtype, each.layout, each.is_nested) for each in (leaf, other[position])}
                same = kinds == {(leaf.dtype, torch.strided, False)} and leaf.shape == other[position].shape
            if not same:
                raise OneSampleAtATime(
                    "the samples of a batch have tensors of different shapes when each is collated by itself, and the functional "
                    "extractor needs equal shapes. Pad them in the dataset, or use extractor='auto' or 'iterative'."
                )
    return [torch.stack([leaves[position] for leaves in each]) for position in batched]
