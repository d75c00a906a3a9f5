"""The laws of tasks."""

import json
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from trak_lightning.data.samples import take_sample
from trak_lightning.data.trees import map_leaves
from trak_lightning.tasks.base import LOSS_FUNCTIONS, Task

SIZE = 4
STEP = 1e-5


class TaskConformance:
    """Subclass it with a ``task``, and methods ``model`` and ``batch`` that make a small problem for it.

    >>> class TestMargin(TaskConformance):
    ...     task = Margin
    ...     def model(self):
    ...         return nn.Linear(3, 1)
    ...     def batch(self, size):
    ...         return torch.randn(size, 3), torch.randint(0, 2, (size,)) * 2 - 1
    """

    task: ClassVar[Callable[[], Task]]
    exact_loss: ClassVar[bool] = True
    """False for a task whose training loss is not a function of the output alone, such as a sum over many tokens. Then q and r
    must only be finite, and r not negative."""

    def model(self) -> nn.Module:
        """Make a model with random weights. It is converted to float64 and put in eval mode."""
        raise NotImplementedError

    def batch(self, size: int) -> Any:
        """Make a random batch. Its floating-point tensors are converted to float64."""
        raise NotImplementedError

    def loss(self, task: Task, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        """Compute ℓ(f) of every sample, (B,), for any f. Override it for a weighted loss, and for a loss of another form."""
        if task.loss_function == "logistic":
            return torch.nn.functional.softplus(-output)
        return -output if task.loss_function == "linear" else task.loss_weight(model, batch, output).square() / 2

    def probability(self, model: nn.Module, batch: Any) -> Tensor | None:
        """Compute the probability that the task's `meaning` promises, (B,), from the model alone; None if it promises none."""
        return None

    @pytest.fixture
    def problem(self) -> tuple[Task, nn.Module, Any]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, batch = self.model().double().eval(), self.batch(SIZE)
        task, batch = type(self).task(), _double(batch)
        if task.fit_samples:
            with torch.no_grad():
                task = task.fitted(task.fit(model, [batch]))
        return task, model, batch

    def test_there_is_one_finite_output_per_sample(self, problem: tuple[Task, nn.Module, Any]) -> None:
        task, model, batch = problem
        output = task.output(model, batch)
        assert output.shape == (SIZE,)
        assert output.dtype == torch.float64
        assert output.isfinite().all()

    def test_the_output_is_differentiable_in_the_parameters(self, problem: tuple[Task, nn.Module, Any]) -> None:
        task, model, batch = problem
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        grads = torch.autograd.grad(task.output(model, batch).sum(), parameters, allow_unused=True)
        assert any(grad is not None and bool(grad.any()) for grad in grads)

    def test_an_output_depends_on_its_own_sample_only(self, problem: tuple[Task, nn.Module, Any]) -> None:
        task, model, batch = problem
        output = task.output(model, batch)
        weight, curvature = task.loss_weight(model, batch, output), task.curvature(model, batch, output)
        for sample in range(SIZE):
            one = take_sample(batch, sample, SIZE)
            alone = task.output(model, one)
            torch.testing.assert_close(alone, output[sample : sample + 1], rtol=1e-8, atol=1e-10)
            for found, whole in (
                (task.loss_weight(model, one, alone), weight),
                (task.curvature(model, one, alone), curvature),
            ):
                torch.testing.assert_close(found, whole[sample : sample + 1], rtol=1e-8, atol=1e-10)

    def test_an_output_does_not_depend_on_chance(self, problem: tuple[Task, nn.Module, Any]) -> None:
        task, model, batch = problem
        torch.manual_seed(1)
        first = task.output(model, batch)
        torch.manual_seed(2)
        assert torch.equal(task.output(model, batch), first)

    def test_a_stand_in_for_the_model_will_do(self, problem: tuple[Task, nn.Module, Any]) -> None:
        """The ``functional`` extractor passes a function that is called like the model, with other parameters."""
        task, model, batch = problem
        replaced = {name: 0.5 * parameter.detach() for name, parameter in model.named_parameters()}

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            return functional_call(model, replaced, args, kwargs)

        found = task.output(stand_in, batch)  # type: ignore[arg-type]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(replaced[name])
        torch.testing.assert_close(found, task.output(model, batch), rtol=1e-10, atol=1e-10)

    def test_the_model_is_left_as_it_was(self, problem: tuple[Task, nn.Module, Any]) -> None:
        task, model, batch = problem
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        output = task.output(model, batch)
        task.loss_weight(model, batch, output)
        task.curvature(model, batch, output)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert [module.training for module in model.modules()] == modes

    def test_loss_weight_and_curvature_are_the_slope_and_curvature_of_the_loss(
        self, problem: tuple[Task, nn.Module, Any]
    ) -> None:
        task, model, batch = problem
        assert task.loss_function in LOSS_FUNCTIONS, f"loss_function must be one of {', '.join(LOSS_FUNCTIONS)}"
        output = task.output(model, batch).detach()
        weight, curvature = (value(model, batch, output) for value in (task.loss_weight, task.curvature))
        torch.testing.assert_close(
            task.loss_weight_and_curvature(model, batch, output), (weight, curvature), rtol=0, atol=0
        )
        for value in (weight, curvature):
            assert value.shape == (SIZE,)
            assert value.isfinite().all()
        assert (curvature >= 0).all()
        if not self.exact_loss:
            return

        def loss(f: Tensor) -> Tensor:
            return self.loss(task, model, batch, f)

        def slope(function: Callable[[Tensor], Tensor]) -> Tensor:
            return (function(output + STEP) - function(output - STEP)) / (2 * STEP)

        torch.testing.assert_close(weight, -slope(loss), rtol=1e-5, atol=1e-7)
        weights_slope = slope(lambda f: task.loss_weight(model, batch, f))
        torch.testing.assert_close(curvature, -weights_slope, rtol=1e-5, atol=1e-7)

    def test_the_probability_that_its_meaning_promises_is_that_of_the_model(
        self, problem: tuple[Task, nn.Module, Any]
    ) -> None:
        task, model, batch = problem
        assert all((task.meaning.output, task.meaning.raises, task.meaning.lowers))
        with torch.no_grad():
            output = task.output(model, batch)
            columns = [values.numpy() for values in (output, task.loss_weight(model, batch, output))]
            expected = self.probability(model, batch)
        found = task.meaning.probabilities(*columns)
        if expected is None:
            assert found is None or ((found >= 0) & (found <= 1)).all()
        else:
            assert found is not None, "the meaning of this task promises no probability"
            torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-8, atol=1e-10)

    def test_its_state_is_json_and_does_not_change_by_use(self, problem: tuple[Task, nn.Module, Any]) -> None:
        task, model, batch = problem
        before = json.dumps(task.state)
        task.output(model, batch)
        assert json.dumps(task.state) == before
        assert task.state == json.loads(before), "tuples and numeric keys do not survive JSON"
        assert task.state == type(self).task().state


def _double(batch: Any) -> Any:
    return map_leaves(
        lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, batch
    )
