"""Linear layers: the weight's gradient is a sum of outer products."""

from collections.abc import Iterator

from torch import Tensor, nn

from trak_lightning.extractors.rules.registry import Names, rule_for
from trak_lightning.gradients import DenseBlock, GradientBlock, OuterProductBlock


@rule_for(nn.Linear)
def linear(module: nn.Module, names: Names, input: Tensor, output_grad: Tensor) -> Iterator[GradientBlock]:
    """``∂f/∂W = Σ_t ∂f/∂y_t ⊗ x_t`` and ``∂f/∂b = Σ_t ∂f/∂y_t`` over all positions t between batch and features."""
    input = input.reshape(input.shape[0], -1, input.shape[-1])
    output_grad = output_grad.reshape(output_grad.shape[0], -1, output_grad.shape[-1])
    if "weight" in names:
        yield OuterProductBlock(names["weight"], output_grad, input)
    if "bias" in names:
        yield DenseBlock(names["bias"], output_grad.sum(1))
