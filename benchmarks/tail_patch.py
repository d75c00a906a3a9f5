"""Does one step on the training examples that a method names teach GPT-2 the target? Dictionary entries.

    pip install rank-bm25
    python benchmarks/tail_patch.py

A trained model makes one gradient step on the k examples that a method ranks highest for a held-out target entry (the tail-patch
score of Chang et al. 2024, "Scalable Influence and Fact Tracing for Large Language Model Pretraining"). The step is the same for
all methods: plain gradient descent on the mean loss of the k examples. Prints the average rise of the log-probability per word of the
target, with 95 % bootstrap intervals over targets; each seed is another model.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_models import checkpoints, recipe
from jsonargparse import auto_cli
from rank_bm25 import BM25Okapi
from rich.console import Console
from rich.table import Table
from trak_lightning_demos import DictionaryDataModule, DictionaryGPT
from trak_lightning_demos.words import words

from trak_lightning import TRAK
from trak_lightning.evaluation.lds import bootstrap_mean

METHODS: dict[str, Any] = {
    "trak": {"name": "trak"},
    "trak, normalize: unit": {"name": "trak", "normalize": "unit"},
    "gradient_cosine": {"name": "gradient_cosine"},
    "tracin": {"name": "tracin"},
}


def main(
    folder: Path = Path("runs/tail-patch"),
    targets: int = 40,
    k: int = 10,
    seeds: int = 2,
    epochs: int = 5,
    num_train: int = 2000,
    dim: int = 2048,
    lr: float = 0.1,
) -> None:
    """Print the table.

    Args:
        folder: folder for models and features.
        targets: number of target entries.
        k: number of training examples in the step.
        seeds: number of models; each is attributed with its own checkpoint alone, from which the step starts.
        epochs: epochs of training.
        num_train: number of training examples.
        dim: dimension of the projection.
        lr: learning rate of the step.
    """
    data = DictionaryDataModule(num_targets=targets, num_train=num_train)
    data.setup()
    bm25 = _bm25(data)
    rises: dict[str, list[list[float]]] = {}
    for seed in range(seeds):
        path = checkpoints(recipe(DictionaryGPT, epochs), data, 1, 1.0, folder / f"{seed}" / "checkpoints", seed)
        model = DictionaryGPT().eval()
        trak = TRAK(
            model,
            {"name": "causal_lm", "reduction": "mean"},
            folder / f"{seed}" / f"features-{dim}",
            projector={"name": "sparse_jl", "dim": dim},
        )
        trak.featurize(data.train_dataloader(), path)
        found = {
            name: np.array(trak.score(data.test_dataloader(), "test", scorer=scorer).values)
            for name, scorer in METHODS.items()
        }
        found["BM25"] = bm25
        found["random"] = np.random.default_rng(seed).random(bm25.shape)
        model.load_state_dict(torch.load(path[0], weights_only=True)["state_dict"])
        for name, scores in found.items():
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            rises.setdefault(name, []).append([_rise(model, data, i, best[i].tolist(), lr) for i in range(targets)])

    table = Table(
        title=f"{targets} targets, {seeds} models, one step on {k} of {num_train} examples, learning rate {lr}"
    )
    for column in ("method", "log-probability per word rises by", "95 % interval", "targets that rise"):
        table.add_column(column)
    for name, rows in rises.items():
        mean, low, high = bootstrap_mean(np.mean(rows, axis=0), seed=0)
        table.add_row(name, f"{mean:.4f}", f"{low:.4f} … {high:.4f}", f"{np.mean(np.array(rows) > 0):.0%}")
    Console(width=120).print(table)


def _rise(model: DictionaryGPT, data: DictionaryDataModule, target: int, examples: list[int], lr: float) -> float:
    collate = data.train_dataloader().collate_fn
    patched = copy.deepcopy(model)
    target_batch = collate([data.test_set[target]])
    with torch.no_grad():
        before = float(patched(**target_batch).loss)
    patched(**collate([data.train_set[i] for i in examples])).loss.backward()
    with torch.no_grad():
        for parameter in patched.parameters():
            parameter -= lr * parameter.grad
        return before - float(patched(**target_batch).loss)


def _bm25(data: DictionaryDataModule) -> Any:
    index = BM25Okapi([words(text) for text in data.train_set.texts])
    return np.stack([index.get_scores(words(text)) for text in data.test_set.texts])


if __name__ == "__main__":
    auto_cli(main)
