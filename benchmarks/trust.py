"""Is the predicted linear datamodeling score the one that retraining gives? Nothing is retrained for the prediction.

    python benchmarks/trust.py --sentences sentiment_3k.tsv.gz --fashion fashion.npz

For each problem, number of checkpoints (trained on random halves) and scorer, prints the LDS that the checkpoints predict, with its
interval, and the LDS over `models` networks retrained on other halves.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jsonargparse import auto_cli
from problems.many import problems
from rich.console import Console
from rich.table import Table
from torch.utils.data import TensorDataset

from trak_lightning import TRAK
from trak_lightning.evaluation.lds import bootstrap_mean, lds


def main(
    sentences: Path | None = None,
    fashion: Path | None = None,
    checkpoints: list[int] = [5, 10, 13],  # noqa: B006
    scorers: list[str] = ["trak", "gradient_dot"],  # noqa: B006
    models: int = 100,
    dim: int = 1024,
) -> None:
    """Print the table.

    Args:
        sentences: table of the UCI sentiment sentences; None leaves them out.
        fashion: ``.npz`` file of Fashion-MNIST; None leaves it out.
        checkpoints: numbers of networks to attribute with.
        scorers: names of scorers.
        models: number of retrained networks to measure with.
        dim: dimensions k of the projection.
    """
    table = Table(title=f"Predicted LDS, and LDS over {models} retrained networks")
    for column in ("problem", "scorer", "checkpoints", "predicted", "interval", "measured", "interval", "difference"):
        table.add_column(column)
    for name, make in problems(sentences, fashion).items():
        problem = make()
        n = len(problem.train[0])
        halves = [
            np.stack([np.random.default_rng([purpose, seed]).permutation(n) < n // 2 for seed in range(count)])
            for purpose, count in ((1, max(checkpoints)), (2, models))
        ]
        states = problem.fit(halves[0], list(range(max(checkpoints))))
        outputs = problem.outputs(problem.fit(halves[1], list(range(1000, 1000 + models))))
        for M in checkpoints:
            with TemporaryDirectory() as folder:
                trak = TRAK(
                    problem.model(0), "image_classification", folder, projector={"name": "sparse_jl", "dim": dim}
                )
                subsets = [np.flatnonzero(half) for half in halves[0][:M]]
                trak.featurize(TensorDataset(*problem.train), states[:M], subsets=subsets)
                for scorer in scorers:
                    scores = trak.score(TensorDataset(*problem.targets), "test", scorer=scorer)
                    trust = scores.trust
                    measured = bootstrap_mean(lds([np.asarray(scores.values)], halves[1], outputs), seed=0)
                    table.add_row(
                        name,
                        scorer,
                        str(M),
                        f"{trust['lds']:.3f}",
                        f"{trust['low']:.2f} … {trust['high']:.2f}",
                        f"{measured[0]:.3f}",
                        f"{measured[1]:.3f} … {measured[2]:.3f}",
                        f"{trust['lds'] - measured[0]:+.3f}",
                    )
                    print(name, scorer, M, trust["sentence"], measured, flush=True)
    Console(width=140).print(table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    auto_cli(main)
