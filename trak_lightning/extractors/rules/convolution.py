"""Convolutions: the weight's gradient is itself a convolution of input and output gradient, sample by sample."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from trak_lightning.extractors.rules.registry import Names, rule_for
from trak_lightning.gradients import ConvolutionBlock, DenseBlock, GradientBlock

_FEW_POSITIONS = 100


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
    """It is the transpose of a convolution that maps its output to its input: the two change places."""
    assert isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    assert not isinstance(module.padding, str)
    if "weight" in names:
        yield _weight_block(names["weight"], module, module.padding, input, output_grad)
    if "bias" in names:
        yield DenseBlock(names["bias"], output_grad.flatten(2).sum(2))


def _weight_block(name: str, module: _ConvNd, padding: tuple[int, ...], left: Tensor, right: Tensor) -> GradientBlock:
    # Sliced for chunks later, and read sample by sample: channels_last would be copied every time.
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
        # With few positions, matrix products of the unfolded input are faster than a convolution a sample.
        if self.groups == 1 and left.ndim == 4 and left.shape[2:].numel() <= _FEW_POSITIONS:
            unfolded = F.unfold(right, self.kernel_size, self.dilation, self.padding, self.stride)
            grad = torch.bmm(left.flatten(2), unfolded.transpose(1, 2))
            return grad.view(*left.shape[:2], right.shape[1], *self.kernel_size)
        # A loop over samples runs at the speed of the backward pass on a CPU; on a GPU it would launch B small kernels
        # where vmap makes one grouped convolution.
        if left.device.type == "cpu":
            grad = left.new_empty(*left.shape[:2], right.shape[1] // self.groups, *self.kernel_size)
            for sample in range(len(left)):
                grad[sample] = self._of_sample(left[sample], right[sample])
            return grad
        return torch.vmap(self._of_sample)(left, right)

    def _of_sample(self, left: Tensor, right: Tensor) -> Tensor:
        # The backward pass asks for a weight, and uses its shape only.
        weight = left.new_empty(()).expand(left.shape[0], right.shape[0] // self.groups, *self.kernel_size)
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            left.unsqueeze(0),
            right.unsqueeze(0),
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            [0] * len(self.kernel_size),
            self.groups,
            [False, True, False],
        )
        return gradients[1]
