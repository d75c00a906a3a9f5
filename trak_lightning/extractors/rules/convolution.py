"""Convolutions: the weight's gradient is itself a convolution of input and output gradient, sample by sample."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trak_lightning.extractors.rules.registry import Names, rule_for
from trak_lightning.gradients import DenseBlock, GradientBlock


@rule_for(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(module: nn.Module, names: Names, input: Tensor, output_grad: Tensor) -> Iterator[GradientBlock]:
    """Any stride, padding, padding mode, dilation and number of groups."""
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if "weight" in names:
        yield DenseBlock(names["weight"], _weight_grad(module, input, output_grad))
    if "bias" in names:
        yield DenseBlock(names["bias"], output_grad.flatten(2).sum(2))


def _weight_grad(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, input: Tensor, output_grad: Tensor) -> Tensor:
    padding: str | tuple[int, ...] = module.padding
    if isinstance(padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        input = F.pad(input, module._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(module.kernel_size)
    weight = module.weight.detach().to(input.dtype)

    def of_one_sample(grad: Tensor, sample: Tensor) -> Tensor:
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            grad.unsqueeze(0),
            sample.unsqueeze(0),
            weight,
            None,
            module.stride,
            padding,
            module.dilation,
            False,
            [0] * len(module.kernel_size),
            module.groups,
            [False, True, False],
        )
        return gradients[1]

    # A loop over samples runs at the speed of the backward pass on a CPU; on a GPU it would launch B small kernels where
    # vmap makes one grouped convolution.
    if input.device.type == "cpu":
        return torch.stack([of_one_sample(grad, sample) for grad, sample in zip(output_grad, input, strict=True)])
    return torch.vmap(of_one_sample)(output_grad, input)
