"""Does `trak select` choose better training data than the top of summed scores, gradient cosine, and chance?

    python benchmarks/selection.py --fashion fashion.npz --sentences sentiment_3k.tsv.gz

Attributes ten networks that were trained on random halves of a pool, of whose labels a share is wrong, chooses a tenth of the pool for half of
the targets, trains networks on it, and judges them by the other half of the targets. Prints the accuracy, and how much of the gap
between a random tenth and the whole pool each choice closes, in accuracy and in loss. Each repetition has another half of the targets, other random
subsets and other seeds; intervals are a bootstrap over repetitions.

With ``--weighted true``, networks are trained on what `trak select` chooses, with the losses weighted by several rules, and are compared with weight 1.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jsonargparse import auto_cli
from problems.loss_weights import Chosen
from problems.many import Problem, digits, fashion, sentiment
from rich.console import Console
from rich.table import Table
from torch.utils.data import TensorDataset

from trak_lightning import TRAK

CHECKPOINTS, RANDOM = 10, 3


def main(
    sentences: Path | None = None,
    fashion_file: Path | None = None,
    with_digits: bool = True,
    wrong: list[float] = [0.0, 0.2],  # noqa: B006
    share: float = 0.1,
    repetitions: int = 4,
    seeds: int = 4,
    dim: int = 1024,
    pools: list[int] = [0],  # noqa: B006
    weighted: bool = False,
) -> None:
    """Print the table.

    Args:
        sentences: table of the UCI sentiment sentences; None leaves them out.
        fashion_file: ``.npz`` file of Fashion-MNIST; None leaves it out.
        with_digits: whether to use the digits.
        wrong: shares of the labels of the pool that are replaced by another class.
        share: of the pool that is chosen.
        repetitions: number of halves of the targets.
        seeds: number of networks trained on each choice.
        dim: dimensions k of the projection.
        pools: seeds of the wrong labels, the halves of the pool and of the targets, and the networks; for Fashion-MNIST, of other images.
        weighted: whether to compare weights of the losses, in place of choices.
    """
    known: dict[str, Callable[[int], Problem]] = {"digits": lambda pool: digits()} if with_digits else {}
    if fashion_file is not None:
        known["fashion"] = partial(some_fashion, fashion_file)
    if sentences is not None:
        known["sentences"] = lambda pool: sentiment(sentences)
    table = Table(title=f"Trained on {share:.0%} of the pool")
    measures = ("over weight 1", "in loss") if weighted else ("of the gap in accuracy", "of the gap in loss")
    for column in ("problem", "wrong labels", "choice", "accuracy", *measures):
        table.add_column(column)
    for name, make in known.items():
        for rate in wrong:
            parts = [
                compare(with_wrong(make(pool), rate, pool), share, repetitions, seeds, dim, pool, weighted)
                for pool in pools
            ]
            found = {choice: np.concatenate([part[choice] for part in parts]) for choice in parts[0]}
            for choice, values in found.items():
                over, gap = values - found["weight 1" if weighted else "random"], found["all"] - found["random"]
                gaps = (interval(over[:, measure], None if weighted else gap[:, measure]) for measure in (0, 1))
                table.add_row(name, f"{rate:.0%}", choice, interval(values[:, 0]), *gaps)
    Console(width=140).print(table)


def compare(
    problem: Problem, share: float, repetitions: int, seeds: int, dim: int, pool: int, weighted: bool
) -> dict[str, np.ndarray]:
    """Accuracy and minus the loss of networks trained on each choice, (repetitions, 2)."""
    n, (z, labels) = len(problem.train[0]), problem.targets
    budget, classes = round(share * n), problem.train[1].numpy()
    halves = np.stack([np.random.default_rng([1 + pool, seed]).permutation(n) < n // 2 for seed in range(CHECKPOINTS)])
    states = problem.fit(halves, list(range(100 * pool, 100 * pool + CHECKPOINTS)))
    found: dict[str, list[np.ndarray]] = {}
    with TemporaryDirectory() as folder:
        trak = TRAK(problem.model(0), "image_classification", folder, projector={"name": "sparse_jl", "dim": dim})
        trak.featurize(TensorDataset(*problem.train), states, subsets=[np.flatnonzero(half) for half in halves])
        for repetition in range(100 * pool, 100 * pool + repetitions):
            generator = np.random.default_rng(repetition)
            mine, judges = np.array_split(generator.permutation(len(labels)), 2)
            targets, split = TensorDataset(z[mine], labels[mine]), f"half-{repetition}"
            summed = np.asarray(trak.score(targets, split)).sum(0)
            choices = {f"random {i}": generator.permutation(n)[:budget] for i in range(RANDOM)} | {"all": np.arange(n)}
            weights: dict[str, np.ndarray] = dict.fromkeys(choices, np.ones(1))
            if weighted:
                selection = trak.select(budget, split)
                chosen, learned = selection.indices, np.asarray(selection.weights)
                weights |= {
                    "weight 1": np.ones(1),
                    "trak select": learned,
                    "the same weights, shuffled": np.random.default_rng(0).permutation(learned),
                    **Chosen.of(trak, split, chosen, len(mine)).rules(),
                }
                weights["each class weighs the same"] = (
                    budget / len(set(classes[chosen])) / np.bincount(classes[chosen])[classes[chosen]]
                )
                choices = dict.fromkeys(weights, chosen) | choices
            else:
                cosine = np.asarray(trak.score(targets, split, scorer="gradient_cosine")).sum(0)
                choices |= {
                    "summed scores": np.argsort(-summed)[:budget],
                    "gradient cosine": np.argsort(-cosine)[:budget],
                    "summed scores, each class": top_of_each(summed, classes, budget),
                    "gradient cosine, each class": top_of_each(cosine, classes, budget),
                    "trak select": trak.select(budget, split).indices,
                    "trak select, groups=label": trak.select(budget, split, groups=classes).indices,
                }
            members = np.zeros((len(choices), n))
            for row, (choice, chosen) in zip(members, choices.items(), strict=True):
                row[chosen] = weights.get(choice, 1)
            judged = [
                problem.outputs(problem.fit(members, [1000 + 10 * repetition + seed] * len(members)))[:, judges]
                for seed in range(seeds)
            ]
            measures = np.stack(
                [(np.array(judged) > 0).mean((0, 2)), -np.logaddexp(0, -np.array(judged)).mean((0, 2))], 1
            )
            for choice, measured in zip(choices, measures, strict=True):
                found.setdefault(choice.split(" ")[0] if choice.startswith("random") else choice, []).append(measured)
    return {choice: np.stack(values).reshape(repetitions, -1, 2).mean(1) for choice, values in found.items()}


def with_wrong(problem: Problem, share: float, seed: int = 0) -> Problem:
    """The problem, with another label at random for a share of the training set."""
    generator, (x, y) = np.random.default_rng(7 + seed), problem.train
    chosen, classes = generator.permutation(len(y))[: round(share * len(y))], int(y.max()) + 1
    noisy = y.numpy().copy()
    noisy[chosen] = (noisy[chosen] + generator.integers(1, classes, len(chosen))) % classes
    return replace(problem, train=(x, torch.tensor(noisy)))


def some_fashion(path: Path, pool: int) -> Problem:
    """The first 2,000 images, and for another pool as many at random of those after them."""
    problem = fashion(path, num_train=100_000 if pool else 2000, num_targets=1000)
    n = len(problem.train[0])
    drawn = np.random.default_rng(pool).permutation(np.arange(2000, n))[:2000] if pool else np.arange(n)
    return replace(problem, train=(problem.train[0][drawn], problem.train[1][drawn]))


def top_of_each(values: np.ndarray, classes: np.ndarray, budget: int) -> np.ndarray:
    """The largest values of every class, as many of each."""
    names = np.unique(classes)
    order = np.argsort(-values)
    return np.concatenate([order[classes[order] == name][: round(budget / len(names))] for name in names])


def interval(values: np.ndarray, unit: np.ndarray | None = None) -> str:
    """The mean (of values per repetition), or the ratio of two means, with a bootstrap interval."""
    count = len(values)
    drawn = np.concatenate([np.arange(count)[None], np.random.default_rng(0).integers(count, size=(1000, count))])
    means = values[drawn].mean(1) / (1 if unit is None else unit[drawn].mean(1))
    return f"{means[0]:.3f} [{np.quantile(means[1:], 0.025):.3f}, {np.quantile(means[1:], 0.975):.3f}]"


if __name__ == "__main__":
    torch.set_num_threads(1)
    auto_cli(main)
