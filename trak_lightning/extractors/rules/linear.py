"""Linear layers: the weight's gradient is a sum of outer products."""

from collections.abc import Iterator

from torch import Tensor, nn

from trak_lightning.extractors.rules.registry import Names, rule_for
from trak_lightning.gradients import DenseBlock, GradientBlock, OuterProductBlock


@rule_for(nn.Linear, positions=True)
def linear(module: nn.Module, names: Names, input: Tensor, output_grad: Tensor) -> Iterator[GradientBlock]:
    """``∂f/∂W = Σ_t ∂f/∂y_t ⊗ x_t`` and ``∂f/∂b = Σ_t ∂f/∂y_t`` over all positions t between batch and features."""
    input = input.reshape(input.shape[0], -1, input.shape[-1])
    output_grad = output_grad.reshape(output_grad.shape[0], -1, output_grad.shape[-1])
    if "weight" in names:
        yield OuterProductBlock(names["weight"], output_grad, input)
    if "bias" in names:
        yield DenseBlock(names["bias"], output_grad.sum(1))


@rule_for("transformers.pytorch_utils.Conv1D", positions=True)
def transposed_linear(module: nn.Module, names: Names, input: Tensor, output_grad: Tensor) -> Iterator[GradientBlock]:
    """GPT-2's linear layer, whose weight is (d_in, d_out): the factors are swapped."""
    for block in linear(module, names, input, output_grad):
        yield OuterProductBlock(block.name, block.right, block.left) if isinstance(block, OuterProductBlock) else block
