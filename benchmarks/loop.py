"""Whether `extractor: auto` is ever slower than a loop over samples: processor time of both, divided by that of a bare loop.

    python benchmarks/loop.py
    python benchmarks/loop.py --models '[experts-64, one-by-one]' --rounds 5

Featurizing a small data set from nothing (`TRAK.featurize`, no projection: audits, hashes, files and the Trainer are included) with
`extractor: auto` and `iterative`. The bare loop calls the model and `torch.autograd.grad` for every sample and joins the gradients in one
row: it checks nothing and stores nothing. They take turns, and the shortest time of each counts, since the machine may be busy.
"""

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from trak_lightning import TRAK


class Experts(nn.Module):
    """A mixture of experts as in Mixtral: a loop over experts, each of which gets the tokens that chose it."""

    def __init__(self, count: int, chosen: int) -> None:
        super().__init__()
        self.gate = nn.Linear(8, count, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.SiLU(), nn.Linear(12, 8)) for _ in range(count))
        self.chosen = chosen

    def forward(self, hidden: Tensor) -> Tensor:
        tokens = hidden.flatten(0, 1)
        weights, selected = self.gate(tokens).softmax(-1).topk(self.chosen, -1)
        output = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(selected == number)
            if token.numel():
                output.index_add_(0, token, expert(tokens[token]) * weights[token, slot, None])
        return output.view_as(hidden) + hidden


class Mean(nn.Module):
    """Logits of the mean over time of what `body` returns."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.body(x)
        return self.head((found[0] if isinstance(found, tuple) else found).mean(1))


def experts(count: int, chosen: int) -> nn.Module:
    return Mean(nn.Sequential(nn.Embedding(30, 8), Experts(count, chosen), Experts(count, chosen)), 8)


def deep() -> nn.Module:
    """Very many small parameters."""
    return nn.Sequential(*(each for _ in range(200) for each in (nn.Linear(8, 8), nn.Tanh())), nn.Linear(8, 3))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))


def numbers(*shape: int) -> Callable[[int], Tensor]:
    return lambda count: torch.randn(count, *shape)


def ids(length: int, vocabulary: int) -> Callable[[int], Tensor]:
    return lambda count: torch.randint(0, vocabulary, (count, length))


@dataclass(frozen=True)
class Case:
    model: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    samples: int
    batch_size: int


CASES = {
    "experts-16": Case(lambda: experts(16, 2), ids(3, 30), 64, 4),
    "experts-64": Case(lambda: experts(64, 2), ids(12, 30), 256, 64),
    "gru": Case(lambda: Mean(nn.GRU(8, 16, batch_first=True), 16), numbers(20, 8), 512, 32),
    "lstm": Case(lambda: Mean(nn.LSTM(8, 16, batch_first=True), 16), numbers(20, 8), 512, 32),
    "mlp": Case(mlp, numbers(8), 4096, 64),
    "mlp, B = 1": Case(mlp, numbers(8), 512, 1),
    "mlp, B = 2": Case(mlp, numbers(8), 512, 2),
    "convolution": Case(convolution, numbers(1, 8, 8), 2048, 64),
    "convolution, B = 1": Case(convolution, numbers(1, 8, 8), 512, 1),
    "deep": Case(deep, numbers(8), 256, 32),
    "deep, B = 1": Case(deep, numbers(8), 128, 1),
    "deep, B = 4": Case(deep, numbers(8), 128, 4),
    "embedding": Case(lambda: Mean(nn.Embedding(2000, 16), 16), ids(10, 2000), 512, 32),
    "sparse embedding": Case(lambda: Mean(nn.Embedding(2000, 16, sparse=True), 16), ids(10, 2000), 512, 32),
}


def main(models: list[str] = list(CASES), rounds: int = 3) -> None:  # noqa: B006
    """Print the table.

    Args:
        models: names of `CASES`.
        rounds: repetitions, of which the shortest counts.
    """
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    table = Table("model", "bare loop", "auto ÷ bare", "iterative ÷ bare", "auto ÷ iterative")
    _seconds(CASES["mlp, B = 2"], "auto")
    for name in models:
        ways = [[_seconds(CASES[name], way) for way in ("bare", "auto", "iterative")] for _ in range(rounds)]
        bare, auto, iterative = map(min, zip(*ways, strict=True))
        ratios = (auto / bare, iterative / bare, auto / iterative)
        table.add_row(name, f"{bare:.2f} s", *(f"{ratio:.2f}" for ratio in ratios))
    Console(width=100).print(table)


def _seconds(case: Case, way: str) -> float:
    torch.manual_seed(0)
    model = case.model().eval()
    data = TensorDataset(case.inputs(case.samples), torch.randint(0, 3, (case.samples,)))
    with tempfile.TemporaryDirectory(prefix="trak-loop-") as folder:
        start = time.process_time()
        if way == "bare":
            _rows(model, data)
        else:
            trak = TRAK(model, "image_classification", folder, projector="identity", extractor=way)
            trak.featurize(data, batch_size=case.batch_size)
        return time.process_time() - start


def _rows(model: nn.Module, data: TensorDataset) -> Tensor:
    parameters, rows = list(model.parameters()), []
    for x, label in data:
        logits = model(x[None])[0]
        margin = logits[label] - torch.cat([logits[:label], logits[label + 1 :]]).logsumexp(0)
        grads = torch.autograd.grad(margin, parameters, allow_unused=True)
        rows.append(torch.cat([_flat(grad, parameter) for grad, parameter in zip(grads, parameters, strict=True)]))
    return torch.stack(rows)


def _flat(grad: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros(parameter.numel()) if grad is None else grad.to_dense().flatten()


if __name__ == "__main__":
    auto_cli(main)
