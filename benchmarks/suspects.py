"""Are label errors found, and are as many of the alarms false as was asked for? Planted errors, beside single measures and cleanlab.

    python benchmarks/suspects.py --problems [digits,glosses] --rates [0.05,0.1,0.2]
    python benchmarks/suspects.py --fashion /usr/share/datasets/fashion-mnist --sentences sentiment_3k.tsv.gz

Trains ten checkpoints on random halves of a training set, of whose labels a share is wrong: another class at random, or (`confusable`) the class that
models trained on right labels take it for most often. Prints the area under the ROC curve of each ranking, how many labels are suspected
at a false discovery rate of 0.1, the realized share of false alarms, the recall, and the recall of the best cut of our ranking with no more
than a tenth of false alarms, which needs the truth. cleanlab (pip install cleanlab) is given the mean held-out probabilities.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from demo_models import checkpoints, recipe
from jsonargparse import auto_cli
from problems import PROBLEMS, Problem, find_fashion
from problems.fashion import ROOT
from problems.sentiment import SentimentData, SentimentMLP
from rich.console import Console
from rich.table import Table
from scipy.special import softmax
from torch.utils.data import TensorDataset

from trak_lightning import TRAK
from trak_lightning.decisions.suspects import Suspects
from trak_lightning.evaluation.mislabeled import auc


def main(
    problems: list[str] = ["digits", "glosses"],  # noqa: B006
    kinds: list[str] = ["random", "confusable"],  # noqa: B006
    rates: list[float] = [0.05, 0.1, 0.2],  # noqa: B006
    fashion: Path | None = None,
    sentences: Path | None = None,
    size: int = 10,
    dim: int = 1024,
) -> None:
    """Print the table.

    Args:
        problems: digits, glosses, fashion or sentiment.
        kinds: random or confusable errors.
        rates: shares of wrong labels.
        fashion: folder with the four files of Fashion-MNIST.
        sentences: table of the UCI sentiment sentences.
        size: number of checkpoints.
        dim: dimensions k of the projection, for self-influence.
    """
    find_fashion(fashion or ROOT)
    known = PROBLEMS | {"sentiment": Problem(SentimentMLP, partial(SentimentData, root=sentences), epochs=8)}
    table = Table(title="Planted label errors")
    for column in ("problem", "errors", "ranking", "AUC", "suspected", "false alarms", "recall", "best cut"):
        table.add_column(column)
    for name in problems:
        partner = confused(*predicted(known[name], None, size, dim)[:2]) if "confusable" in kinds else np.zeros(0)
        for kind in kinds:
            for rate in rates:
                plant = partial(planted, kind=kind, rate=rate, partner=partner)
                suspects, labels, wrong, influence = predicted(known[name], plant, size, dim)
                for ranking, *values in rows(suspects, labels, wrong, influence):
                    table.add_row(name, f"{rate:.0%} {kind}", ranking, *values)
    Console(width=140).print(table)


def predicted(problem: Any, plant: Any, size: int, dim: int) -> tuple[Suspects, np.ndarray, np.ndarray, np.ndarray]:
    """Suspects, labels, which of them are wrong (n,), and self-influence, of models trained on labels with planted errors."""
    data = problem.data()
    data.setup()
    inputs, labels = data.train_set.tensors
    noisy = labels.numpy() if plant is None else plant(labels.numpy())
    data.train_set, data.setup = TensorDataset(inputs, torch.tensor(noisy)), lambda stage=None: None
    with TemporaryDirectory() as folder:
        paths = checkpoints(recipe(problem.model, problem.epochs), data, size, 0.5, Path(folder) / "checkpoints")
        trak = TRAK(
            problem.model().eval(), problem.task(), Path(folder) / "run", projector={"name": "sparse_jl", "dim": dim}
        )
        trak.featurize(data.train_dataloader(), [str(path) for path in paths])
        return trak.suspects(), noisy, noisy != labels.numpy(), trak.self_influence().self_influence


def confused(suspects: Suspects, labels: np.ndarray) -> np.ndarray:
    """The class that each class is taken for most often, (C,)."""
    assert suspects.predictions is not None
    p = softmax(suspects.predictions.log_probabilities, axis=1)
    means = np.stack([p[labels == label].mean(0) for label in range(p.shape[1])])
    np.fill_diagonal(means, 0)
    return means.argmax(1)


def planted(labels: np.ndarray, kind: str, rate: float, partner: np.ndarray) -> np.ndarray:
    """The labels, of which some are wrong."""
    generator, classes = np.random.default_rng(1), int(labels.max()) + 1
    chosen = generator.permutation(len(labels))[: round(rate * len(labels))]
    noisy = labels.copy()
    other = (labels[chosen] + generator.integers(1, classes, len(chosen))) % classes
    noisy[chosen] = partner[labels[chosen]] if kind == "confusable" else other
    return noisy


def rows(suspects: Suspects, labels: np.ndarray, wrong: np.ndarray, influence: np.ndarray) -> list[tuple[str, ...]]:
    """One row of the table for each ranking."""
    assert suspects.predictions is not None
    p = softmax(suspects.predictions.log_probabilities.astype(np.float64), axis=1)
    own = p[np.arange(len(labels)), labels]
    share = 1 - np.cumsum(wrong[suspects.ranking]) / np.arange(1, len(wrong) + 1)
    best = np.flatnonzero(share <= 0.1)
    oracle = wrong[suspects.ranking[: best[-1] + 1]].sum() / wrong.sum() if len(best) else 0.0
    found = [
        ("suspects", f"{auc(suspects.suspicion, wrong):.4f}", *_cut(suspects.indices, wrong), f"{oracle:.3f}"),
        ("1 − p(label), held out", f"{auc(1 - own, wrong):.4f}", "", "", "", ""),
        ("self-influence", f"{auc(influence, wrong):.4f}", "", "", "", ""),
    ]
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return found
    issues = find_label_issues(labels, p, return_indices_ranked_by="self_confidence", n_jobs=1)
    quality = auc(-get_label_quality_scores(labels, p), wrong)
    return [*found, ("cleanlab", f"{quality:.4f}", *_cut(issues, wrong), "")]


def _cut(indices: np.ndarray, wrong: np.ndarray) -> tuple[str, str, str]:
    false = 1 - wrong[indices].mean() if len(indices) else 0.0
    return str(len(indices)), f"{false:.3f}", f"{wrong[indices].sum() / wrong.sum():.3f}"


if __name__ == "__main__":
    auto_cli(main)
