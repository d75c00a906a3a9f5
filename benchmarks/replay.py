"""How well does the derivative through a recorded run predict that run without some samples?

    python benchmarks/replay.py --problems [digits,glosses,gpt]

Trains each problem once, recorded, then again from the same seed with the same batches, without a random share of the samples. Prints the
rank correlation over these trainings of the true outputs with the sums of scores of what was left in, as a mean over targets with
a bootstrap interval: the linear datamodeling score at a fixed seed. What is attributed is the mean output of a group of targets. Beside
it stand TRAK and others, from the weights of the recorded run alone, with the mean of their scores over the group.
Seconds are those of the processor, also as multiples of the recorded training.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from jsonargparse import auto_cli
from problems import PROBLEMS, find_fashion
from problems.fashion import ROOT
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from trak_lightning_replay import Record, Replay
from trak_lightning_replay.smoothness import drawn_subsets

from trak_lightning import TRAK
from trak_lightning.evaluation.lds import spearman
from trak_lightning.runtime.lightning import WRITES_NOTHING, quiet_lightning
from trak_lightning.tasks.classification import ImageClassification
from trak_lightning.tasks.language import CausalLM


def main(
    problems: list[str] = ["digits", "glosses", "gpt"],  # noqa: B006
    folder: Path = Path("runs/replay"),
    removed: list[float] = [0.05, 0.01],  # noqa: B006
    models: int = 50,
    targets: int = 100,
    groups: int = 20,
    fashion: Path = ROOT,
) -> None:
    """Print the table.

    Args:
        problems: names of problems.
        folder: where recordings, scores and outputs of trainings are kept.
        removed: shares of the training samples that are left out.
        models: number of trainings for each share.
        targets: number of targets.
        groups: number of groups that they are divided into.
        fashion: folder with the four files of Fashion-MNIST.
    """
    find_fashion(fashion)
    print("| problem | removed | method | LDS at a fixed seed | processor s | trainings |")
    print("| --- | --- | --- | --- | --- | --- |")
    for problem in problems:
        _judge(problem, folder / problem, removed, models, np.arange(targets) % groups)


def _judge(problem: str, folder: Path, removed: list[float], models: int, groups: npt.NDArray[np.int64]) -> None:
    chosen = PROBLEMS[problem]
    data = chosen.data()
    data.setup()
    loader, every = data.train_dataloader(), data.test_dataloader()
    test = DataLoader(Subset(every.dataset, range(len(groups))), every.batch_size, collate_fn=every.collate_fn)
    begun = chosen.pretrained(data, folder / "pretrained.pt") if chosen.pretrained else None
    L.seed_everything(0, verbose=False)
    module = begun or chosen.model()
    task = chosen.task()
    training = _seconds(lambda: _record(module, loader, folder / "recording", chosen.epochs))
    replay = Replay(module, loader, folder / "recording", LOSSES[chosen.task])
    scores: dict[str, Any] = {}
    cost = {}

    def replayed() -> None:
        scores["replay"] = replay.score(test, task, folder / "run", groups=groups, check=0).values

    def trak() -> None:
        attribution = TRAK(module.eval(), task, folder / "run")
        attribution.featurize(loader)
        values = np.asarray(attribution.score(test, "trak").values)
        scores["TRAK"] = [values[groups == group].mean(0) for group in np.unique(groups)]

    cost["replay"] = _seconds(replayed)
    cost["TRAK"] = _seconds(trak)
    for share in removed:
        masks = drawn_subsets(len(loader.dataset), models, share, seed=1)
        kept = folder / f"outputs-{share}-{models}.npy"
        if not kept.exists():
            np.save(kept, [replay.outputs(test, task, each, groups) for each in masks])
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


def _of_tokens(module: L.LightningModule, batch: dict[str, Tensor]) -> Tensor:
    """The share of each sequence in the mean over all tokens of the batch, times the batch size."""
    labels = batch["labels"][:, 1:]
    logits = module(**batch).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return losses.sum(1) * len(labels) / (labels != -100).sum()


LOSSES = {ImageClassification: _cross_entropies, CausalLM: _of_tokens}


def _seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    auto_cli(main)
