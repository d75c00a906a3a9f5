"""Find the λ at which scores predict best, and what ``auto`` reaches: the curves of docs/regularization.md.

    python benchmarks/regularization.py --fashion /usr/share/datasets/fashion-mnist
    python benchmarks/regularization.py --problems [noisy] --dims [512,2048]
    python benchmarks/regularization.py --problems [fashion-60k] --models 60 --ensemble 6 --checkpoints [1,3]  # an hour

Computes the linear datamodeling score for λ/trace from 1/31 to 1/100,000 with the models of `benchmarks/lds.py`, which are trained
if they are missing. Groups of M checkpoints are the first M, the next M and so on; curves are means over at most three groups. Prints
a row for each problem, k and M, and at the end what the rule reaches on each problem with its constant chosen on the others.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from problems import find_fashion, prepare
from problems.fashion import ROOT

from trak_lightning import TRAK
from trak_lightning.evaluation.lds import spearman
from trak_lightning.retraining.outputs import read_outputs
from trak_lightning.scoring.base import Array
from trak_lightning.scoring.regularization import automatic
from trak_lightning.scoring.rows import as_computed
from trak_lightning.scoring.score_run import load_features
from trak_lightning.scoring.system import System

RELATIVE = np.logspace(-1.5, -5, 22)
"""λ/trace."""


def main(
    problems: list[str] = ["digits", "fashion", "glosses", "noisy"],  # noqa: B006
    folder: Path = Path("runs/lds"),
    dims: list[int] = [512, 2048],  # noqa: B006
    checkpoints: list[int] = [1, 3, 10],  # noqa: B006
    models: int = 100,
    ensemble: int = 10,
    fashion: Path = ROOT,
) -> None:
    """Print the table.

    Args:
        problems: names of problems.
        folder: where models and curves are kept.
        dims: k of the projection; 0 for no projection.
        checkpoints: M.
        models: number of retrained models to evaluate with.
        ensemble: number of checkpoints to choose from.
        fashion: folder with the four files of Fashion-MNIST.
    """
    find_fashion(fashion)
    found: dict[tuple[str, int, int, int], Array] = {}
    print("| problem | k | M | best LDS | at trace/ | above 97 % from trace/ | to trace/ | `auto`: trace/ | reaches |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for problem in problems:
        for k in dims:
            n, dim, curves = _curves(problem, folder / problem, k, checkpoints, models, ensemble)
            for M, curve in curves.items():
                found[problem, n, dim, M] = curve
                good = RELATIVE[curve >= 0.97 * curve.max()]
                chosen = automatic(n, dim, M)
                ends = f"{1 / good[0]:.0f} | {1 / good[-1]:.0f}"
                best = f"{curve.max():.3f} | {1 / RELATIVE[curve.argmax()]:.0f}"
                reached = f"{1 / chosen:.0f} | {share(curve, chosen):.1%}"
                print(f"| {problem} | {k or 'p'} | {M} | {best} | {ends} | {reached} |", flush=True)
    for left_out in problems if len(problems) > 1 else []:
        factors = np.logspace(-1, 1, 81)
        worst = [
            min(share(curve, factor * automatic(*key[1:])) for key, curve in found.items() if key[0] != left_out)
            for factor in factors
        ]
        factor = factors[int(np.argmax(worst))]
        reached_there = min(
            share(curve, factor * automatic(*key[1:])) for key, curve in found.items() if key[0] == left_out
        )
        print(
            f"{left_out}: λ × {factor:.2f} is best on the others ({max(worst):.1%}); here {reached_there:.1%} at the least"
        )


def share(curve: Array, relative: float) -> float:
    """Of the best LDS, at some λ/trace."""
    return float(np.interp(-np.log(relative), -np.log(RELATIVE), curve) / curve.max())


def _curves(
    problem: str, folder: Path, k: int, checkpoints: list[int], models: int, ensemble: int
) -> tuple[int, int, dict[int, Array]]:
    """n, k and the mean LDS at every λ for each M; kept in `folder`."""
    kept = folder / f"curves-{k}-{models}-{'-'.join(map(str, checkpoints))}.json"
    if not kept.exists():
        trained = prepare(problem, folder, ensemble=ensemble, models=models)
        subsets, outputs = read_outputs(
            trained.models, models, num_samples=len(trained.train), num_targets=len(trained.targets)
        )
        run = folder / f"curves-{k}"
        projector = {"name": "sparse_jl", "dim": k} if k else "identity"
        trak = TRAK(trained.model, trained.task, run, projector=projector)
        trak.featurize(trained.train, trained.checkpoints[: ensemble if max(checkpoints) > 1 else 3])
        trak.score(trained.targets, "test", scorer="gradient_dot", top=1)  # which featurizes the targets
        features = load_features(trak.run, trak.store, targets="test")
        groups = {M: [range(first, first + M) for first in range(0, len(features) - M + 1, M)][:3] for M in checkpoints}
        weights = np.stack([each.train.column("loss_weight") for each in features]).astype(np.float64)
        predicted = {
            group: np.zeros((len(RELATIVE), models, len(trained.targets)))
            for ranges in groups.values()
            for group in ranges
        }
        for m, each in enumerate(features):
            mine = [group for group in predicted if m in group]
            if not mine:
                continue
            masks = np.concatenate([subsets * weights[list(group)].mean(0) for group in mine])
            sums = np.zeros((len(masks), each.train.spec.dim))
            for rows in each.train.blocks():
                sums += masks[:, rows.index] @ as_computed(rows.features)
            targets = as_computed(each.targets.rows(0, each.targets.spec.num_samples).features)
            products = System(each, "residual").products(sums, targets, RELATIVE)
            for group, part in zip(mine, np.split(products, len(mine), axis=1), strict=True):
                predicted[group] += part
        lds = {
            M: np.mean([[spearman(each, outputs).mean() for each in predicted[group]] for group in ranges], 0).tolist()
            for M, ranges in groups.items()
        }
        kept.write_text(json.dumps({"n": len(trained.train), "k": features[0].train.spec.dim, "lds": lds}))
        shutil.rmtree(run)
    read = json.loads(kept.read_text())
    return read["n"], read["k"], {int(M): np.array(curve) for M, curve in read["lds"].items()}


if __name__ == "__main__":
    auto_cli(main)
