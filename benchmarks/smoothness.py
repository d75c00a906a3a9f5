"""How often does the check of `Replay.score` refuse scores that predict, and accept scores that do not?

    python benchmarks/smoothness.py

Trains small networks on 400 digits, smooth to chaotic by optimizer and learning rate, and each of them again 40 times without a random 5 % of its samples. Scores
are right about a run if their rank correlation with these trainings is 0.8 or more, and wrong below 0.5. Prints how often draws of 4 and of 8 of
these trainings are refused by `explained`, below 0.25, and by `explained_differences`, below 0.5. The limits were chosen on the first part.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from jsonargparse import auto_cli
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from trak_lightning_replay import Record, Replay, Smoothness
from trak_lightning_replay.smoothness import drawn_subsets

from trak_lightning.demos import DigitsDataModule
from trak_lightning.runtime.lightning import WRITES_NOTHING, quiet_lightning

Array = npt.NDArray[Any]

REMOVED, MODELS, DRAWS = 0.05, 40, 200

OUTPUTS = {
    "100 targets as one group": [[range(10)]],
    "one group of ten": [[[0]], [[5]]],
    "ten groups of ten": [[[k] for k in range(10)]],
}
"""For each row of the table, some choices of outputs: each output is the mean of these groups of ten."""


def sgd(lr: float) -> Callable[..., Any]:
    return partial(torch.optim.SGD, lr=lr, momentum=0.9)


def adamw(lr: float, eps: float) -> Callable[..., Any]:
    return partial(torch.optim.AdamW, lr=lr, eps=eps)


PARTS: dict[str, dict[str, Any]] = {
    "chosen": {
        "seeds": [0],
        "activations": [nn.ReLU, nn.GELU],
        "optimizers": [sgd(0.02), sgd(0.1), sgd(0.4), adamw(3e-3, 1e-8), adamw(2e-2, 1e-8), adamw(2e-2, 1e-2)],
        "layers": [32],
        "data": (range(400), range(100)),
        "fit": (50, 12),
    },
    "fresh": {
        "seeds": [10, 11, 12],
        "activations": [nn.Tanh, nn.ReLU],
        "optimizers": [sgd(0.03), sgd(0.1), sgd(0.3), adamw(5e-3, 1e-8), adamw(3e-2, 1e-8), adamw(1e-2, 1e-3)],
        "layers": [24, 24, 24],
        "data": (range(700, 1100), range(100, 200)),
        "fit": (80, 15),
    },
}
"""Seeds, networks, training samples and targets, batch size and epochs."""


class Network(L.LightningModule):
    """Hidden layers of these sizes."""

    def __init__(self, layers: list[int], activation: type[nn.Module], optimizer: Callable[..., Any]) -> None:
        super().__init__()
        hidden = [each for a, b in pairwise([64, *layers]) for each in (nn.Linear(a, b), activation())]
        self.net = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(layers[-1], 10))
        self._optimizer = optimizer

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def losses(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1], reduction="none")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.losses(batch).mean()

    def configure_optimizers(self) -> Any:
        return self._optimizer(self.parameters())


def main(folder: Path = Path("runs/smoothness")) -> None:
    """Print the table.

    Args:
        folder: where outputs of trainings are kept.
    """
    print("| part | outputs | trainings | rule | smooth refused | chaotic accepted | between, accepted |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for part, chosen in PARTS.items():
        grid = product(chosen["seeds"], chosen["activations"], range(len(chosen["optimizers"])))
        runs = [_changes(folder / part, chosen, *each) for each in grid]
        for what, choices in OUTPUTS.items():
            cases = [_mean_of(run, groups) for run in runs for groups in choices]
            for trainings, rule in product((4, 8), ("explained", "explained_differences")):
                print(
                    f"| {part} | {what} | {trainings} | {rule} | {' | '.join(_rates(cases, trainings, rule))} |",
                    flush=True,
                )


def _changes(folder: Path, part: dict[str, Any], seed: int, activation: type[nn.Module], optimizer: int) -> Smoothness:
    """Changes of ten groups of targets over all retrained models."""
    kept = folder / f"{seed}-{activation.__name__}-{optimizer}.npz"
    if not kept.exists():
        data = DigitsDataModule()
        data.setup()
        samples, targets = part["data"]
        batch_size, epochs = part["fit"]
        train = DataLoader(Subset(data.train_dataloader().dataset, samples), batch_size, shuffle=True)
        given = Subset(data.test_dataloader().dataset, targets), "image_classification"
        groups = np.arange(len(targets)) % 10
        L.seed_everything(seed, verbose=False)
        module = Network(part["layers"], activation, part["optimizers"][optimizer])
        shutil.rmtree(folder / "run", ignore_errors=True)
        with quiet_lightning():
            record = Record(folder / "run" / "recording")
            L.Trainer(accelerator="cpu", max_epochs=epochs, **WRITES_NOTHING, callbacks=[record]).fit(module, train)
        replay = Replay(module, train, folder / "run" / "recording")
        scores = replay.score(*given, folder / "run", groups=groups, check=0)
        masks = drawn_subsets(len(samples), MODELS, REMOVED, seed)
        before, *after = (replay.outputs(*given, each, groups) for each in (None, *masks))
        np.savez(kept, predicted=(masks - 1) @ np.asarray(scores, np.float64).T, actual=np.array(after) - before)
    found = np.load(kept)
    return Smoothness(found["predicted"], found["actual"], REMOVED)


def _mean_of(run: Smoothness, groups: list[Any]) -> Smoothness:
    predicted, actual = (
        np.stack([each[:, list(group)].mean(1) for group in groups], 1) for each in (run.predicted, run.actual)
    )
    return Smoothness(predicted, actual, run.removed)


def _rates(cases: list[Smoothness], trainings: int, rule: str) -> Iterator[str]:
    """Shares of draws that are refused although smooth, accepted although chaotic, and accepted in between; with the number of runs."""
    generator = np.random.default_rng(0)
    limit = 0.25 if rule == "explained" else 0.5
    accepted: dict[str, list[float]] = {"smooth": [], "chaotic": [], "between": []}
    for case in cases:
        rows = [generator.choice(MODELS, trainings, replace=False) for _ in range(DRAWS)]
        few = [Smoothness(case.predicted[each], case.actual[each], REMOVED) for each in rows]
        kind = "smooth" if case.lds >= 0.8 else "chaotic" if case.lds < 0.5 else "between"
        accepted[kind].append(float(np.mean([getattr(each, rule) >= limit for each in few])))
    for kind, found in accepted.items():
        share = 1 - np.mean(found) if kind == "smooth" else np.mean(found)
        yield f"{share:.3f} of {len(found)}"


if __name__ == "__main__":
    auto_cli(main)
