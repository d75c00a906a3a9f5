"""Does the block step predict models retrained without a set of samples better than summed scores?

    python benchmarks/what_if.py --sentences sentiment_3k.tsv.gz --fashion fashion.npz

Attributes ten networks that were trained on random halves, removes sets of 1 to 20 % of the training set, retrains (the mean of
`repeats` networks of other seeds), and prints the rank correlation, over sets and averaged over targets, of predicted and measured changes
of the output. Sets are random; the most helpful samples of a target; neighbors of a sample (a source); of one class.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jsonargparse import auto_cli
from problems.many import Problem, problems
from rich.console import Console
from rich.table import Table
from torch.utils.data import TensorDataset

from trak_lightning import TRAK
from trak_lightning.evaluation.lds import bootstrap_mean, spearman

SHARES = (0.01, 0.05, 0.1, 0.2)


def main(
    sentences: Path | None = None,
    fashion: Path | None = None,
    checkpoints: int = 10,
    dim: int = 1024,
    repeats: int = 3,
    output: Path | None = None,
) -> None:
    """Print the table.

    Args:
        sentences: table of the UCI sentiment sentences; None leaves them out.
        fashion: ``.npz`` file of Fashion-MNIST; None leaves it out.
        checkpoints: number of networks to attribute with.
        dim: dimensions k of the projection.
        repeats: number of networks retrained without each set.
        output: folder for predictions and measurements.
    """
    table = Table(title="Rank correlation with retraining, over sets")
    for column in ("problem", "sets", "number", "summed scores", "block step", "gain of the block step"):
        table.add_column(column)
    for name, make in problems(sentences, fashion).items():
        problem = make()
        with TemporaryDirectory() as folder:
            sets, kinds, shares, summed, change, leverage, seconds = predict(problem, Path(folder), checkpoints, dim)
        measured = measure(problem, sets, repeats)
        if output is not None:
            np.savez(output / f"{name}.npz", summed=summed, change=change, measured=measured, kinds=kinds, shares=shares,
                     leverage=leverage)  # fmt: skip
        large = shares >= 0.05
        groups = {"all": shares > 0, "5 to 20 %": large} | {f"{share:.0%}": shares == share for share in SHARES}
        groups |= {f"5 to 20 %, {kind}": large & (kinds == kind) for kind in ("random", "helpful", "near", "class")}
        for label, chosen in groups.items():
            by_sum, by_block = (spearman(values[chosen], measured[chosen]) for values in (summed, change))
            table.add_row(
                name,
                label,
                str(chosen.sum()),
                *(_interval(bootstrap_mean(values, seed=0)) for values in (by_sum, by_block, by_block - by_sum)),
            )
        print(f"{name}: {seconds:.2f} s of processor time per answer")
    Console(width=140).print(table)


def predict(problem: Problem, folder: Path, checkpoints: int, dim: int):  # type: ignore[no-untyped-def]
    """Sets of samples, and what scores and the block step say of their removal."""
    n = len(problem.train[0])
    halves = np.stack([np.random.default_rng([1, seed]).permutation(n) < n // 2 for seed in range(checkpoints)])
    states = problem.fit(halves, list(range(checkpoints)))
    trak = TRAK(problem.model(0), "image_classification", folder, projector={"name": "sparse_jl", "dim": dim})
    trak.featurize(TensorDataset(*problem.train), states, subsets=[np.flatnonzero(half) for half in halves])
    scores = np.asarray(trak.score(TensorDataset(*problem.targets), "test").values)
    sets, kinds, shares = choose_sets(problem, scores)
    what_if = trak.what_if("test")
    what_if.remove(sets[0])
    started = time.process_time()
    found = [what_if.remove(each) for each in sets]
    seconds = (time.process_time() - started) / len(sets)
    return (
        sets,
        kinds,
        shares,
        np.stack([each.summed for each in found]),
        np.stack([each.change for each in found]),
        np.array([each.leverage for each in found]),
        seconds,
    )


def choose_sets(problem: Problem, scores: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Sets, their kinds and their shares of the training set."""
    generator = np.random.default_rng(0)
    x, y = (tensor.numpy() for tensor in problem.train)
    targets = generator.permutation(len(scores))[:5]
    found = []
    for share in SHARES:
        size = round(share * len(x))
        found += [(generator.permutation(len(x))[:size], "random", share) for _ in range(5)]
        found += [(np.argsort(-scores[target])[:size], "helpful", share) for target in targets]
        for center in generator.permutation(len(x))[:5]:
            found.append((np.argsort(((x - x[center]) ** 2).sum(1))[:size], "near", share))
        for label in generator.permutation(y.max() + 1)[:5]:
            found.append((generator.permutation(np.flatnonzero(y == label))[:size], "class", share))
    sets, kinds, shares = zip(*found, strict=True)
    return list(sets), np.array(kinds), np.array(shares)


def measure(problem: Problem, sets: list[np.ndarray], repeats: int) -> np.ndarray:
    """Change of the outputs of networks retrained without each set, (len(sets), m)."""
    n, total = len(problem.train[0]), 0.0
    members = np.ones((len(sets) + 1, n), dtype=bool)
    for row, each in zip(members[1:], sets, strict=True):
        row[each] = False
    for repeat in range(repeats):
        outputs = problem.outputs(problem.fit(members, [1000 + repeat] * len(members)))
        total = total + outputs[1:] - outputs[:1]
    return np.asarray(total) / repeats


def _interval(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]"


if __name__ == "__main__":
    torch.set_num_threads(1)
    auto_cli(main)
