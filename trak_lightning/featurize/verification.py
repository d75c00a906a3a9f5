"""Does a sample's gradient depend on the other samples of its batch, or on chance? And if so, which module's fault is it?"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trak_lightning.data.trees import flatten
from trak_lightning.errors import SampleDependenceError
from trak_lightning.tasks.base import Task


def difference(alone: npt.NDArray[Any], within: npt.NDArray[Any]) -> float:
    """``‖alone − within‖ / ‖alone‖`` of a sample's features."""
    return float(np.linalg.norm(alone - within) / max(np.linalg.norm(alone), np.finfo(np.float32).tiny))


def refuse(
    model: nn.Module, task: Task, samples: tuple[int, int, int], error: float, alone: Any, batch: Any
) -> NoReturn:
    """Say that a sample comes out otherwise alone, and name the module. `samples` are its index in the dataset, its place in
    `batch`, and B.

    Raises:
        SampleDependenceError: always.
    """
    sample, place, size = samples
    culprit = first_difference(model, task, alone, batch, place, size)
    raise SampleDependenceError(
        f"the output or gradient of sample {sample} alone differs by {error:.1%} from that in a batch of {size}, so attributions "
        f"would depend on the batch. {culprit or 'No module is at fault, so look at the task and at code between modules'}. "
        "Likely causes: random layers that ignore model.eval() (F.dropout without training=self.training), batch statistics, "
        "a model output that mixes samples, or padding that is not masked."
    )


def first_difference(model: nn.Module, task: Task, alone: Any, batch: Any, place: int, size: int) -> str | None:
    """The first module whose output for a sample depends on chance, or on the batch that the sample is in."""
    runs = [_outputs(model, task, data) for data in (batch, batch, alone)]
    names = {module: name or "the model" for name, module in model.named_modules()}
    once, twice, single = ([(module, _tensors(output)) for module, output in run] for run in runs)
    for (module, first), (_, second), (_, lone) in zip(once, twice, single, strict=False):
        what = f"{names[module]} ({type(module).__name__})"
        if any(one.shape != two.shape or not _close(one, two) for one, two in zip(first, second, strict=False)):
            return f"The output of {what} differs between two runs on the same batch: it draws random numbers"
        for one, two in zip(first, lone, strict=False):
            by_sample = (
                one.ndim and two.ndim and (one.shape[0], two.shape[0]) == (size, 1) and one.shape[1:] == two.shape[1:]
            )
            if by_sample and not _close(one[place], two[0]):
                return f"The first module whose output for this sample differs is {what}"
    return None


def _outputs(model: nn.Module, task: Task, batch: Any) -> list[tuple[nn.Module, Any]]:
    """Every module's output, in the order in which modules return, on the CPU lest a GPU hold them all."""
    found: list[tuple[nn.Module, Any]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        found.append((module, [tensor.detach().cpu().clone() for tensor in _tensors(output)]))

    with _hooked(model, note), torch.no_grad():
        task.output(model, batch)
    return found


@contextmanager
def _hooked(model: nn.Module, hook: Any) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in model.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in flatten(output)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _close(one: Tensor, two: Tensor) -> bool:
    tolerance = 1e-3 if one.dtype in (torch.float32, torch.float64) else 0.1
    scale = float(one.abs().max()) if one.numel() else 0.0
    return bool(torch.allclose(one, two, rtol=tolerance, atol=tolerance * scale, equal_nan=True))
