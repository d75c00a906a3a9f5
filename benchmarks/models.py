"""The models that are timed: what users bring, at sizes that two CPU cores bear, and at full size for a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trak_lightning.tasks.base import Task
from trak_lightning.tasks.margin import margin

Batch = tuple[dict[str, Tensor], Tensor]


class Margin(Task):
    """The multiclass margin at one position or at many; over several positions, their mean."""

    def output(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, labels = batch
        margins = margin(model(**inputs), labels)
        return margins if margins.ndim == 1 else margins.mean(1)


class Logits(nn.Module):
    """A `transformers` model that returns its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.model(**inputs).logits


@dataclass(frozen=True)
class Workload:
    """A model and the shape of its batch. ``batch(B)`` draws B samples."""

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    batch_size: int
    positions: bool = False
    """Whether the model predicts at every position (B, T, C)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, labels = batch
        return F.cross_entropy(model(**inputs).flatten(0, -2), labels.flatten())


class Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.2 * x


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class ResNet9(nn.Sequential):
    """The small residual network of the TRAK paper's CIFAR experiments: 2,274,880 parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(
            _conv(3, 64),
            _conv(64, 128, kernel=5, stride=2, padding=2),
            Residual(_conv(128, 128), _conv(128, 128)),
            _conv(128, 256),
            nn.MaxPool2d(2),
            Residual(_conv(256, 256), _conv(256, 256)),
            _conv(256, 128, padding=0),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(128, classes, bias=False),
            Scale(),
        )


def _conv(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class _BasicBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels_out)
        self.second = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first_norm(self.first(x)), inplace=True)
        return F.relu(self.second_norm(self.second(hidden)) + self.shortcut(x), inplace=True)


class ResNet18(nn.Sequential):
    """He et al. 2016, for 224×224 images: 11.7 M parameters with 1000 classes."""

    def __init__(self, classes: int = 1000) -> None:
        widths = (64, 64, 128, 128, 256, 256, 512, 512)
        blocks = [
            _BasicBlock(before, width, 1 if before == width else 2)
            for before, width in zip((64, *widths), widths, strict=False)
        ]
        super().__init__(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(512, classes),
        )


def bert(**settings: Any) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return Logits(BertForSequenceClassification(BertConfig(num_labels=10, **settings)))


def gpt2(**settings: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return Logits(GPT2LMHeadModel(GPT2Config(use_cache=False, **settings)))


def vit(**settings: Any) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return Logits(ViTForImageClassification(ViTConfig(num_labels=10, **settings)))


def images(key: str, size: int, classes: int) -> Callable[[int], Batch]:
    return lambda B: ({key: torch.randn(B, 3, size, size)}, torch.randint(classes, (B,)))


def tokens(length: int, vocabulary: int, classes: int | None = None) -> Callable[[int], Batch]:
    def draw(B: int) -> Batch:
        ids = torch.randint(vocabulary, (B, length))
        labels = torch.randint(vocabulary, (B, length)) if classes is None else torch.randint(classes, (B,))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels

    return draw


NARROW = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("resnet9", ResNet9, images("input", 32, 10), 32),
        Workload("bert-6x384", lambda: bert(**NARROW), tokens(128, 30522, 10), 16),
        Workload("gpt2-6x384", lambda: gpt2(n_embd=384, n_layer=6, n_head=12), tokens(128, 50257), 8, positions=True),
        Workload(
            "vit-tiny",
            lambda: vit(**NARROW | {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3,
                                    "num_hidden_layers": 12, "image_size": 64, "patch_size": 8}),
            images("pixel_values", 64, 10),
            16,
        ),
        Workload("resnet18-224", ResNet18, images("input", 224, 1000), 64),
        Workload("bert-base", lambda: bert(), tokens(512, 30522, 10), 32),
        Workload("gpt2-small", lambda: gpt2(), tokens(1024, 50257), 8, positions=True),
    )
}  # fmt: skip
