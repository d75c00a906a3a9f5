"""Activations with parameters."""

from collections.abc import Iterator

from torch import Tensor, nn

from trak_lightning.extractors.rules.registry import Names, rule_for
from trak_lightning.gradients import DenseBlock, GradientBlock


@rule_for(nn.PReLU)
def prelu(module: nn.Module, names: Names, input: Tensor, output_grad: Tensor) -> Iterator[GradientBlock]:
    """``∂f/∂a = Σ ∂f/∂y · min(x, 0)``, over all entries of a sample or, with one slope per channel, over all but the channels."""
    assert isinstance(module, nn.PReLU)
    products = output_grad * input.clamp(max=0)
    if module.num_parameters == 1:
        grad = products.flatten(1).sum(1, keepdim=True)
    else:
        grad = products.flatten(2).sum(2) if products.ndim > 2 else products
    yield DenseBlock(names["weight"], grad)
