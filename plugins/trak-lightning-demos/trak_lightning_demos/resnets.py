"""The residual networks of the TRAK paper."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F


class ResNet9(nn.Sequential):
    """The small residual network of the CIFAR experiments, for 32×32 images: 2,274,880 parameters with ten classes."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(
            _conv(3, 64),
            _conv(64, 128, kernel=5, stride=2, padding=2),
            _Residual(_conv(128, 128), _conv(128, 128)),
            _conv(128, 256),
            nn.MaxPool2d(2),
            _Residual(_conv(256, 256), _conv(256, 256)),
            _conv(256, 128, padding=0),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(128, classes, bias=False),
            _Scale(),
        )


class ResNet18(nn.Sequential):
    """He et al. 2016, for 224×224 images: 11,689,512 parameters with 1000 classes. Parameters are named as in torchvision, so that
    checkpoints of either load."""

    def __init__(self, classes: int = 1000) -> None:
        stages = {
            f"layer{number}": nn.Sequential(_Block(before, width, stride), _Block(width, width, 1))
            for number, (before, width, stride) in enumerate(
                [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)], start=1
            )
        }
        super().__init__(
            OrderedDict[str, nn.Module](
                conv1=nn.Conv2d(3, 64, 7, 2, 3, bias=False),
                bn1=nn.BatchNorm2d(64),
                relu=nn.ReLU(inplace=True),
                maxpool=nn.MaxPool2d(3, 2, 1),
                **stages,
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(512, classes),
            )
        )


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + super().forward(x)
        return added


class _Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.2 * x


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(hidden)) + self.downsample(x), inplace=True)


def _conv(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )
