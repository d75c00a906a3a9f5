"""Normalization layers: y = weight · x̂ + bias, where x̂ does not depend on the parameters."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from trak_lightning.extractors.rules.registry import Names, rule_for
from trak_lightning.gradients import DenseBlock, GradientBlock


@rule_for(nn.LayerNorm, positions=True)
def layer_norm(module: nn.Module, names: Names, input: Tensor, output_grad: Tensor) -> Iterator[GradientBlock]:
    """Sums over the positions between the batch and the normalized dimensions."""
    assert isinstance(module, nn.LayerNorm)
    shape = module.normalized_shape
    normalized = F.layer_norm(input, shape, eps=module.eps)
    yield from _affine(names, normalized, output_grad, list(range(1, input.ndim - len(shape))))


@rule_for(nn.RMSNorm, positions=True)
def rms_norm(module: nn.Module, names: Names, input: Tensor, output_grad: Tensor) -> Iterator[GradientBlock]:
    """Like `layer_norm`, without mean and bias."""
    assert isinstance(module, nn.RMSNorm)
    shape = list(module.normalized_shape)
    eps = torch.finfo(input.dtype).eps if module.eps is None else module.eps
    normalized = F.rms_norm(input, shape, eps=eps)
    yield from _affine(names, normalized, output_grad, list(range(1, input.ndim - len(shape))))


@rule_for(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm(module: nn.Module, names: Names, input: Tensor, output_grad: Tensor) -> Iterator[GradientBlock]:
    """Sums over the positions after the channels; running statistics are used where the layer uses them."""
    assert isinstance(module, _InstanceNorm)
    own_statistics = module.training or module.running_mean is None
    statistics = (module.running_mean, module.running_var)
    mean, var = (None if own_statistics or value is None else value.to(input.dtype) for value in statistics)
    normalized = F.instance_norm(input, mean, var, use_input_stats=own_statistics, eps=module.eps)
    yield from _affine(names, normalized, output_grad, list(range(2, input.ndim)))


@rule_for(nn.GroupNorm)
def group_norm(module: nn.Module, names: Names, input: Tensor, output_grad: Tensor) -> Iterator[GradientBlock]:
    """Sums over the positions after the channels."""
    assert isinstance(module, nn.GroupNorm)
    normalized = F.group_norm(input, module.num_groups, eps=module.eps)
    yield from _affine(names, normalized, output_grad, list(range(2, input.ndim)))


@rule_for(
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    when=lambda module: isinstance(module, _BatchNorm) and not module.training and module.running_mean is not None,
)
def batch_norm(module: nn.Module, names: Names, input: Tensor, output_grad: Tensor) -> Iterator[GradientBlock]:
    """With running statistics only, where samples are independent. Sums over the positions after the channels."""
    assert isinstance(module, _BatchNorm)
    assert module.running_mean is not None
    assert module.running_var is not None
    mean, var = module.running_mean.to(input.dtype), module.running_var.to(input.dtype)
    normalized = F.batch_norm(input, mean, var, training=False, eps=module.eps)
    yield from _affine(names, normalized, output_grad, list(range(2, input.ndim)))


def _affine(names: Names, normalized: Tensor, output_grad: Tensor, positions: list[int]) -> Iterator[GradientBlock]:
    def total(values: Tensor) -> Tensor:
        return values.sum(positions) if positions else values

    if "weight" in names:
        yield DenseBlock(names["weight"], total(output_grad * normalized))
    if "bias" in names:
        yield DenseBlock(names["bias"], total(output_grad))
