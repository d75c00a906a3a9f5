"""Convolutions: the weight's gradient is itself a convolution of input and output gradient, sample by sample."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from trak_lightning.extractors.rules.registry import Names, rule_for
from trak_lightning.gradients import ConvolutionBlock, DenseBlock, GradientBlock, samples_at_a_time

_FEW_POSITIONS, _FEW_CHANNELS = 100, 16
"""Up to these sizes, a matrix product with the unfolded input is faster than a convolution, measured on a CPU."""


@rule_for(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(module: nn.Module, names: Names, input: Tensor, output_grad: Tensor) -> Iterator[GradientBlock]:
    """Any stride, padding, padding mode, dilation and number of groups."""
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if "weight" in names:
        padding = module.padding
        if isinstance(padding, str) or module.padding_mode != "zeros":
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            input = F.pad(input, module._reversed_padding_repeated_twice, mode=mode)
            padding = (0,) * len(module.kernel_size)
        yield _weight_block(names["weight"], module, padding, output_grad, input)
    if "bias" in names:
        yield DenseBlock(names["bias"], output_grad.flatten(2).sum(2))


@rule_for(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_convolution(
    module: nn.Module, names: Names, input: Tensor, output_grad: Tensor
) -> Iterator[GradientBlock]:
    """The transpose of the convolution that maps its output to its input: swap the roles of input and output gradient."""
    assert isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    assert not isinstance(module.padding, str)
    if "weight" in names:
        yield _weight_block(names["weight"], module, module.padding, input, output_grad)
    if "bias" in names:
        yield DenseBlock(names["bias"], output_grad.flatten(2).sum(2))


def _weight_block(name: str, module: _ConvNd, padding: tuple[int, ...], left: Tensor, right: Tensor) -> GradientBlock:
    # Contiguous, since channels_last would be copied for every chunk of samples.
    product = _WeightProduct(module.kernel_size, module.stride, padding, module.dilation, module.groups)
    return ConvolutionBlock(name, left.contiguous(), right.contiguous(), product, module.groups)


@dataclass(frozen=True)
class _WeightProduct:
    """``grad[b, o, i, κ] = Σ_position left[b, o, position] · right[b, i, stride · position + dilation · κ − padding]``."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        few = left.shape[2:].numel() <= _FEW_POSITIONS or right.shape[1] < _FEW_CHANNELS
        product = self._unfolded if few and self.groups == 1 else self._grouped
        shape = left.shape[1], right.shape[1] // self.groups, *self.kernel_size
        step = samples_at_a_time(math.prod(shape), left.device, ConvolutionBlock.share)
        if len(left) <= step:
            return product(left, right)
        grad = left.new_empty(len(left), *shape)
        for start in range(0, len(left), step):
            samples = slice(start, start + step)
            grad[samples] = product(left[samples], right[samples])
        return grad

    def summed(self, left: Tensor, right: Tensor) -> Tensor:
        """``Σ_b grad[b]``, as an ordinary backward pass computes it."""
        return self._backward(left, right, left.shape[1], self.groups)

    def _unfolded(self, left: Tensor, right: Tensor) -> Tensor:
        """Multiply by the patches of the input that each kernel entry is applied to."""
        padding = [side for size in reversed(self.padding) for side in (size, size)]
        right = F.pad(right, padding) if any(padding) else right
        batch, channels, *places = right.stride()
        patches = right.as_strided(
            (*right.shape[:2], *self.kernel_size, *left.shape[2:]),
            (
                batch,
                channels,
                *(place * step for place, step in zip(places, self.dilation, strict=True)),
                *(place * step for place, step in zip(places, self.stride, strict=True)),
            ),
            right.storage_offset(),
        )
        patches = patches.reshape(len(right), -1, left.shape[2:].numel())
        grad = torch.bmm(left.flatten(2), patches.transpose(1, 2))
        return grad.view(*left.shape[:2], right.shape[1], *self.kernel_size)

    def _grouped(self, left: Tensor, right: Tensor) -> Tensor:
        """Run the backward pass of one convolution in which every sample is a group of channels."""
        B, channels = len(left), right.shape[1] // self.groups
        grad = self._backward(
            left.flatten(0, 1).unsqueeze(0), right.flatten(0, 1).unsqueeze(0), B * left.shape[1], B * self.groups
        )
        return grad.view(*left.shape[:2], channels, *self.kernel_size)

    def _backward(self, left: Tensor, right: Tensor, outputs: int, groups: int) -> Tensor:
        # It requires a weight but uses only its shape.
        weight = left.new_empty(()).expand(outputs, right.shape[1] // groups, *self.kernel_size)
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            left,
            right,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            [0] * len(self.kernel_size),
            groups,
            [False, True, False],
        )
        return gradients[1]
