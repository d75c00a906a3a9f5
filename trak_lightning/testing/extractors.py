"""The laws of gradient extractors."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import UnsupportedModelError
from trak_lightning.extractors.base import GradientExtractor
from trak_lightning.gradients import GradientBlock, ParameterLayout
from trak_lightning.tasks.base import Task
from trak_lightning.testing.models import CASES, Case, Sum

TOLERANCE = 1e-10


class ExtractorConformance:
    """Subclass with ``extractor``, a class or function that makes one without arguments.

    Every case is compared in float64 with a plain loop of ``torch.autograd.grad`` over the samples.
    """

    extractor: ClassVar[Callable[[], GradientExtractor]]
    refuses: ClassVar[Mapping[str, str]] = {}
    """Names of cases that the extractor refuses with `UnsupportedModelError`, each with the reason."""

    @pytest.mark.parametrize("size", [1, 2, 7])
    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_gradients_equal_the_autograd_loop(self, case: Case, size: int) -> None:
        model, batch = make(case, size)
        if case.name in self.refuses:
            with pytest.raises(UnsupportedModelError):
                extract(type(self).extractor(), model, batch, size)
            return
        output, found = extract(type(self).extractor(), model, batch, size)
        expected_output, expected = autograd_loop(model, Sum(), batch, size)
        torch.testing.assert_close(output, expected_output, rtol=TOLERANCE, atol=0)
        assert found.keys() == expected.keys()
        for name, grad in expected.items():
            assert found[name].shape == grad.shape
            assert (found[name] - grad).norm() <= TOLERANCE * grad.norm(), name

    def test_a_second_batch_is_as_right_as_the_first(self) -> None:
        case = CASES[0]
        model, _ = make(case, 1)
        extractor = type(self).extractor()
        for size in (3, 5):
            batch = case.batch(size)
            found = extract(extractor, model, batch, size)[1]
            for name, grad in autograd_loop(model, Sum(), batch, size)[1].items():
                assert (found[name] - grad).norm() <= TOLERANCE * grad.norm(), name

    def test_the_model_is_left_as_it_was(self) -> None:
        model, batch = make(next(case for case in CASES if case.name == "partly frozen"), 2)
        before = fingerprint(model)
        extract(type(self).extractor(), model, batch, 2)
        assert fingerprint(model) == before

    def test_the_model_is_left_as_it_was_when_the_sink_fails(self) -> None:
        model, batch = make(next(case for case in CASES if case.name == "partly frozen"), 2)
        before = fingerprint(model)

        def fail(block: GradientBlock) -> None:
            raise KeyError("sink")

        with pytest.raises(KeyError, match="sink"):
            type(self).extractor().extract(model, Sum(), SampleBatch.of_rows(batch, 2), ParameterLayout.of(model), fail)
        assert fingerprint(model) == before


def make(case: Case, size: int) -> tuple[nn.Module, Any]:
    """The case's model in float64 and eval mode, with fixed weights, and a batch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return case.model().double().eval(), case.batch(size)


def extract(extractor: GradientExtractor, model: nn.Module, batch: Any, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs, and blocks added up by parameter; a parameter that did not arrive is zero. `batch` is a `SampleBatch`, or
    tensors that have the samples first."""
    samples = batch if isinstance(batch, SampleBatch) else SampleBatch.of_rows(batch, size)
    return gradients(extractor, model, Sum(), samples)


def gradients(
    extractor: GradientExtractor, model: nn.Module, task: Task, batch: SampleBatch
) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs (B,), and per-sample gradients (B, *shape) by parameter."""
    layout = ParameterLayout.of(model)
    found = {slot.name: torch.zeros(batch.size, *slot.shape, dtype=torch.float64) for slot in layout}

    def sink(block: GradientBlock) -> None:
        block.require(layout.by_name[block.name], batch.size)
        found[block.name][block.samples] += block.dense()

    return extractor.extract(model, task, batch, layout, sink), found


def autograd_loop(model: nn.Module, task: Task, batch: Any, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The oracle: one backward pass per sample, in a batch of one."""
    samples = batch if isinstance(batch, SampleBatch) else SampleBatch.of_rows(batch, size)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    outputs, rows = [], []
    for sample in range(samples.size):
        output = task.output(model, samples.fetch([sample]).data)
        grads = torch.autograd.grad(output.sum(), list(parameters.values()), allow_unused=True)
        rows.append(
            [
                torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g
                for p, g in zip(parameters.values(), grads, strict=True)
            ]
        )
        outputs.append(output.detach().reshape(1))
    columns = zip(*rows, strict=True)
    return torch.cat(outputs), {name: torch.stack(column) for name, column in zip(parameters, columns, strict=True)}


def fingerprint(model: nn.Module) -> list[Any]:
    """All of a model that an extractor might disturb."""
    return [
        *((name, tensor.tolist()) for name, tensor in model.state_dict().items()),
        *((name, parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()),
        *((name, module.training, len(module._forward_hooks)) for name, module in model.named_modules()),
    ]
