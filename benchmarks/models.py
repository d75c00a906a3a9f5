"""The models that are timed: what users bring, at sizes that two CPU cores bear, and at full size for a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trak_lightning_demos.resnets import ResNet9, ResNet18

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
