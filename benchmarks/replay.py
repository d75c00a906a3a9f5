"""How well does the derivative through a recorded run predict that run without some samples?

    python benchmarks/replay.py --problems [digits,glosses]

Trains each problem once, recorded, then again from the same seed with the same batches, without a random share of the samples. Prints the
rank correlation over these trainings of the true outputs with the sums of scores of what was left in, as a mean over targets with
a bootstrap interval: the linear datamodeling score at a fixed seed. Beside it stands TRAK, from the weights of the recorded run alone.
Seconds are those of the processor, also as multiples of the recorded training.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from jsonargparse import auto_cli
from problems import PROBLEMS, find_fashion
from problems.fashion import ROOT
from torch import Tensor
from trak_lightning_replay import Record, Replay
from trak_lightning_replay.smoothness import drawn_subsets

from trak_lightning import TRAK
from trak_lightning.evaluation.lds import spearman
from trak_lightning.runtime.lightning import WRITES_NOTHING, quiet_lightning


def main(
    problems: list[str] = ["digits", "glosses"],  # noqa: B006
    folder: Path = Path("runs/replay"),
    removed: list[float] = [0.05, 0.01],  # noqa: B006
    models: int = 50,
    targets: int = 50,
    dim: int = 8192,
    fashion: Path = ROOT,
) -> None:
    """Print the table.

    Args:
        problems: names of problems.
        folder: where recordings, scores and outputs of trainings are kept.
        removed: shares of the training samples that are left out.
        models: number of trainings for each share.
        targets: number of targets.
        dim: k of TRAK.
        fashion: folder with the four files of Fashion-MNIST.
    """
    find_fashion(fashion)
    print("| problem | removed | method | LDS at a fixed seed | processor s | trainings |")
    print("| --- | --- | --- | --- | --- | --- |")
    for problem in problems:
        _judge(problem, folder / problem, removed, models, targets, dim)


def _judge(problem: str, folder: Path, removed: list[float], models: int, m: int, dim: int) -> None:
    chosen = PROBLEMS[problem]
    data = chosen.data()
    data.setup()
    loader, test = data.train_dataloader(), torch.utils.data.Subset(data.test_dataloader().dataset, range(m))
    L.seed_everything(0, verbose=False)
    module = chosen.model()
    training = _seconds(lambda: _record(module, loader, folder / "recording", chosen.epochs))
    replay = Replay(module, loader, folder / "recording", _cross_entropies)
    scores: dict[str, Any] = {}
    cost = {}

    def replayed() -> None:
        scores["replay"] = replay.score(test, "image_classification", folder / "run", check=0).values

    def trak() -> None:
        task = TRAK(module.eval(), "image_classification", folder / "run", projector={"name": "sparse_jl", "dim": dim})
        task.featurize(loader)
        scores[f"TRAK, k = {dim}, M = 1"] = task.score(test, "trak").values

    cost["replay"] = _seconds(replayed)
    cost[f"TRAK, k = {dim}, M = 1"] = _seconds(trak)
    for share in removed:
        masks = drawn_subsets(len(loader.dataset), models, share, seed=1)
        kept = folder / f"outputs-{share}-{models}.npy"
        if not kept.exists():
            np.save(kept, [replay.outputs(test, "image_classification", each) for each in masks])
        outputs = np.load(kept)
        for method, values in scores.items():
            each = spearman(masks @ np.asarray(values, np.float64).T, outputs)
            draws = np.random.default_rng(0).choice(each, (2000, len(each))).mean(1)
            low, high = np.quantile(draws, [0.025, 0.975])
            price = f"{cost[method]:.0f} | {cost[method] / training:.1f}"
            print(
                f"| {problem} | {share:.0%} | {method} | {each.mean():.3f} [{low:.3f}, {high:.3f}] | {price} |",
                flush=True,
            )


def _record(module: L.LightningModule, loader: Any, folder: Path, epochs: int) -> None:
    with quiet_lightning():
        L.Trainer(accelerator="cpu", max_epochs=epochs, **WRITES_NOTHING, callbacks=[Record(folder)]).fit(
            module, loader
        )


def _cross_entropies(module: L.LightningModule, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, labels = batch
    return torch.nn.functional.cross_entropy(module(inputs), labels, reduction="none")


def _seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    auto_cli(main)
