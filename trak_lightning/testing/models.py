"""Tiny models, each with one thing that makes per-sample gradients hard to get right. In float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trak_lightning.tasks.base import Task


class Sum(Task):
    """f(z) = Σ of the model's outputs, weighted so that no gradient vanishes by symmetry."""

    loss_function = "logistic"

    def output(self, model: nn.Module, batch: Any) -> Tensor:
        found = model(batch)
        found = found["logits"] if isinstance(found, dict) else found
        flat = found.flatten(1)
        return (flat * torch.linspace(0.5, 1.5, flat.shape[1], dtype=flat.dtype)).tanh().sum(1)


@dataclass(frozen=True)
class Case:
    """A model, and a function that makes a batch of B samples for it."""

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[int], Any]


class Residual(nn.Module):
    """In-place addition and activation of layer outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        branch = self.second(hidden.tanh())
        branch += hidden
        return branch.relu_()


class Tied(nn.Module):
    """The embedding is the output layer, and a layer is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.middle = nn.Embedding(6, 4, padding_idx=0), nn.Linear(4, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.middle(self.middle(self.embedding(tokens)).tanh()))


class BareParameters(nn.Module):
    """A class token, a position table and a layer scale; the output is a dict, and a layer is called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.positions = nn.Embedding(5, 4)
        self.scale = nn.Parameter(torch.randn(4))
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.positions(torch.arange(x.shape[1]).unsqueeze(0))
        return {"logits": self.layer(input=x) * self.scale, "ignored": x.detach()}


class Scaled(nn.Linear):
    """A subclass with a forward of its own is not its base class."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input) + self.bias


class Recurrent(nn.Module):
    """A GRU, which vmap cannot do."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class TwoPaths(nn.Module):
    """The same modules at two paths, trainable, frozen and with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.first[1].weight.requires_grad_(False)
        self.second = nn.Sequential(self.first[0], nn.Tanh(), self.first[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def _partly_frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    return model


def _batch_norm() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.BatchNorm1d(64)
    )
    model.train()(torch.randn(16, 2, 6, 6))
    return model


def _inputs(*shape: int) -> Callable[[int], Tensor]:
    return lambda B: torch.randn(B, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(B))


def _tokens(length: int) -> Callable[[int], Tensor]:
    return lambda B: torch.randint(0, 6, (B, length), generator=torch.Generator().manual_seed(B))


CASES = (
    Case("linear", lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), _inputs(3)),
    Case(
        "linear over positions",
        lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2, False)),
        _inputs(2, 5, 3),
    ),
    Case("convolution", lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 2)), _inputs(2, 6, 5)),
    Case(
        "convolution with stride, dilation and groups",
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=2, bias=False),
        _inputs(4, 7, 6),
    ),
    Case(
        "convolution with padding modes",
        lambda: nn.Sequential(
            nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.Conv2d(2, 2, 4, padding="same")
        ),
        _inputs(2, 6, 5),
    ),
    Case("convolution in one dimension", lambda: nn.Conv1d(2, 3, 3, padding=1), _inputs(2, 6)),
    Case("batch norm in eval", _batch_norm, _inputs(2, 6, 6)),
    Case("layer norm", lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.LayerNorm((5, 4))), _inputs(5, 3)),
    Case("group norm", lambda: nn.Sequential(nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4)), _inputs(2, 4, 4)),
    Case("embedding", lambda: nn.Sequential(nn.Embedding(6, 4, padding_idx=1), nn.Linear(4, 2)), _tokens(5)),
    Case("residual in place", Residual, _inputs(4)),
    Case(
        "activation in place",
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
        _inputs(3),
    ),
    Case("tied weights, called twice", Tied, _tokens(5)),
    Case("modules at two paths", TwoPaths, _inputs(4)),
    Case("bare parameters, dict output, keyword input", BareParameters, _inputs(4, 4)),
    Case("subclass with its own forward", lambda: Scaled(3, 2), _inputs(3)),
    Case("layer without a rule", lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(4)), _inputs(3)),
    Case("partly frozen", _partly_frozen, _inputs(3)),
    Case("transformer layer", lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), _inputs(3, 4)),
    Case("recurrent", Recurrent, _inputs(5, 3)),
)
