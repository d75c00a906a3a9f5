"""Hundreds of small networks trained at once, each on its own part of the data: for benchmarks that retrain a lot."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from problems.sentiment import SentimentData
from trak_lightning.demos import DigitsDataModule


@dataclass(frozen=True)
class Problem:
    """Data, and a network with two hidden layers or one, trained with AdamW."""

    train: tuple[Tensor, Tensor]
    targets: tuple[Tensor, Tensor]
    widths: tuple[int, ...]
    epochs: int
    lr: float = 3e-3
    weight_decay: float = 0.1
    batch_size: int = 64

    def model(self, seed: int) -> nn.Sequential:
        """A network with fresh weights, in eval mode."""
        torch.manual_seed(seed)
        sizes = [self.train[0].shape[1], *self.widths]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.GELU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], int(self.train[1].max()) + 1)).eval()

    def fit(self, members: np.ndarray, seeds: list[int]) -> list[dict[str, Tensor]]:
        """Train one network for each row of members (J, n), on the samples that are true there: their state dicts.

        Numbers in place of true weight the losses. Networks of the same seed have the same first weights and see the samples in the same order.
        """
        models = [self.model(seed) for seed in seeds]
        parameters, buffers = stack_module_state(models)
        optimizer = torch.optim.AdamW(parameters.values(), lr=self.lr, weight_decay=self.weight_decay)
        base, kept, (x, y) = models[0], torch.tensor(members), self.train
        n, steps = len(x), -(-len(x) // self.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps * self.epochs)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        rows = torch.arange(len(seeds))[:, None]
        for _ in range(self.epochs):
            orders = {seed: torch.randperm(n, generator=each) for seed, each in zip(seeds, generators, strict=True)}
            order = torch.stack([orders[seed] for seed in seeds])
            for batch in order.split(self.batch_size, dim=1):
                logits = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)))(parameters, buffers, x[batch])
                losses = nn.functional.cross_entropy(logits.flatten(0, 1), y[batch].flatten(), reduction="none")
                weights = kept[rows, batch].float()
                loss = ((losses.view(batch.shape) * weights).sum(1) / (weights > 0).sum(1).clamp(min=1)).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return [
            {name: tensor[place].detach().clone() for name, tensor in parameters.items()} for place in range(len(seeds))
        ]

    def outputs(self, states: list[dict[str, Tensor]]) -> np.ndarray:
        """Log-odds of the label of every target under each network: (J, m)."""
        x, y = self.targets
        model = self.model(0)
        found = []
        with torch.no_grad():
            for state in states:
                logits = functional_call(model, state, (x,))
                own = logits[torch.arange(len(y)), y]
                others = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
                found.append((own - others).numpy())
        return np.stack(found).astype(np.float64)


def digits() -> Problem:
    """1,397 digits."""
    data = DigitsDataModule()
    data.setup()
    (x, y), (z, labels) = data.train_set.tensors, data.test_set.tensors  # type: ignore[attr-defined]
    return Problem((x.flatten(1), y), (z.flatten(1), labels), (64, 64), epochs=15)


def sentiment(path: Path) -> Problem:
    """2,500 sentences as frozen embeddings."""
    data = SentimentData(path)
    data.setup()
    return Problem(data.train_set.tensors, data.test_set.tensors, (32,), epochs=5)  # type: ignore[arg-type]


def fashion(path: Path, num_train: int = 2000, num_targets: int = 400) -> Problem:
    """The first images of Fashion-MNIST, from a ``.npz`` file with train_images, train_labels, test_images and test_labels."""
    with np.load(path) as found:
        parts = [
            (found[f"{part}_images"][:size], found[f"{part}_labels"][:size])
            for part, size in (("train", num_train), ("test", num_targets))
        ]
    mean, std = parts[0][0].mean(), parts[0][0].std()
    train, targets = (
        (torch.tensor((x.reshape(len(x), -1) - mean) / std, dtype=torch.float32), torch.tensor(y.astype(np.int64)))
        for x, y in parts
    )
    return Problem(train, targets, (64,), epochs=10)


def problems(sentences: Path | None, fashion_file: Path | None) -> dict[str, Callable[[], Problem]]:
    """Those whose data is there."""
    found: dict[str, Callable[[], Problem]] = {"digits": digits}
    if sentences is not None:
        found["sentiment"] = lambda: sentiment(sentences)
    if fashion_file is not None:
        found["fashion"] = lambda: fashion(fashion_file)
    return found
