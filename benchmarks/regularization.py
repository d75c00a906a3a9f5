"""Find the λ at which scores predict best, and what ``auto`` reaches: the curves of docs/regularization.md.

    python benchmarks/regularization.py --fashion /usr/share/datasets/fashion-mnist
    python benchmarks/regularization.py --problems [noisy] --dims [auto,2048]
    python benchmarks/regularization.py --problems [fashion-60k] --models 60 --ensemble 6 --checkpoints [1,3]  # an hour

Computes the linear datamodeling score for λ/trace from 1/31 to 1/100,000 with the models of `benchmarks/lds.py`, which are trained
if they are missing. Groups of M checkpoints are the first M, the next M and so on; curves are means over at most three groups. Prints
a row for each problem, k and M.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from problems import find_fashion, prepare, projector
from problems.fashion import ROOT

from trak_lightning import TRAK
from trak_lightning.evaluation.lds import spearman
from trak_lightning.retraining.outputs import read_outputs
from trak_lightning.scoring.base import Array
from trak_lightning.scoring.linear_system import System
from trak_lightning.scoring.regularization import automatic, problem
from trak_lightning.scoring.rows import as_computed
from trak_lightning.scoring.score_run import load_features

RELATIVE = np.logspace(-1.5, -5, 22)
"""λ/trace."""


def main(
    problems: list[str] = ["digits", "fashion", "glosses", "noisy"],  # noqa: B006
    folder: Path = Path("runs/lds"),
    dims: list[int | str] = ["auto", 2048],  # noqa: B006
    checkpoints: list[int] = [1, 3, 10],  # noqa: B006
    models: int = 100,
    ensemble: int = 10,
    fashion: Path = ROOT,
    fraction: float = 0.5,
) -> None:
    """Print the table.

    Args:
        problems: names of problems.
        folder: where models and curves are kept.
        dims: k of `sparse_jl`; 0 for no projection, and auto for the default projector.
        checkpoints: M.
        models: number of retrained models to evaluate with.
        ensemble: number of checkpoints to choose from.
        fashion: folder with the four files of Fashion-MNIST.
        fraction: of the training set that each checkpoint is trained on.
    """
    find_fashion(fashion)
    print("| problem | k | M | best LDS | at trace/ | above 97 % from trace/ | to trace/ | `auto`: trace/ | reaches |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in problems:
        for k in dims:
            for M, (curve, chosen) in _curves(name, folder / name, k, checkpoints, models, ensemble, fraction).items():
                good = RELATIVE[curve >= 0.97 * curve.max()]
                ends = f"{1 / good[0]:.0f} | {1 / good[-1]:.0f}"
                best = f"{curve.max():.3f} | {1 / RELATIVE[curve.argmax()]:.0f}"
                reached = (
                    f"{1 / np.exp(np.log(chosen).mean()):.0f} | {np.mean([share(curve, each) for each in chosen]):.1%}"
                )
                print(f"| {name} | {k or 'p'} | {M} | {best} | {ends} | {reached} |", flush=True)


def share(curve: Array, relative: float) -> float:
    """Of the best LDS, at some λ/trace."""
    return float(np.interp(-np.log(relative), -np.log(RELATIVE), curve) / curve.max())


def _curves(
    name: str, folder: Path, k: int | str, checkpoints: list[int], models: int, ensemble: int, fraction: float
) -> dict[int, tuple[Array, list[float]]]:
    """For each M, the mean LDS at every λ, and what `auto` chooses for each group of checkpoints; kept in `folder`."""
    kept = folder / f"curves-{k}-{models}-{fraction:g}-{'-'.join(map(str, checkpoints))}.json"
    if not kept.exists():
        trained = prepare(name, folder, ensemble=ensemble, models=models, fraction=fraction)
        subsets, outputs = read_outputs(
            trained.models, models, num_samples=len(trained.train), num_targets=len(trained.targets)
        )
        run = folder / f"curves-{k}"
        trak = TRAK(trained.model, trained.task, run, projector=projector(k))
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
        dim = features[0].train.spec.dim
        parts = [problem([System(each, "residual")]) for each in features]
        chosen = {
            M: [automatic(dim, M, float(np.exp(np.mean(np.log([parts[m] for m in group]))))) for group in ranges]
            for M, ranges in groups.items()
        }
        kept.write_text(json.dumps({"lds": lds, "auto": chosen}))
        shutil.rmtree(run)
    read = json.loads(kept.read_text())
    return {int(M): (np.array(curve), read["auto"][M]) for M, curve in read["lds"].items()}


if __name__ == "__main__":
    auto_cli(main)
