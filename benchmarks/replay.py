"""How well does the derivative through a recorded run predict that run without some samples?

    python benchmarks/replay.py --problems [smooth-digits]
    python benchmarks/replay.py --problems [smooth-glosses]
    python benchmarks/replay.py --problems [smooth-gpt]
    python benchmarks/replay.py --peers '{kronfluence: peers/kronfluence/bin/python}'

Trains each problem once, recorded, then again from the same seed with the same batches, without a random share of the samples. Prints the
rank correlation over these trainings of the true outputs with the sums of scores of what was left in, as a mean over targets with
a bootstrap interval: the linear datamodeling score at a fixed seed. What is attributed is the mean output of a group of targets. Next to
it stand TRAK and others, from the weights of the recorded run alone, with the mean of their scores over the group. Then what the check of
smoothness says from four of these trainings, and from all.
Seconds are those of the processor, also as multiples of the recorded training. Outputs of retrained models are kept in `folder`. The settings of the smooth problems were
chosen with --seed 0; the figures in docs/benchmarks.md are those of seed 1.
"""

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from jsonargparse import auto_cli
from lds import UNPROJECTED, peer_scores
from problems import PROBLEMS, find_fashion
from problems.fashion import ROOT
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from trak_lightning_replay import Record, Replay, Smoothness
from trak_lightning_replay.recording import state_path
from trak_lightning_replay.smoothness import drawn_subsets
from unrolling import featurized, source, tracin

from trak_lightning import TRAK
from trak_lightning.evaluation.lds import bootstrap_mean, spearman
from trak_lightning.runtime.lightning import WRITES_NOTHING, quiet_lightning
from trak_lightning.tasks.classification import ImageClassification
from trak_lightning.tasks.language import CausalLM

Array = npt.NDArray[Any]

CHECKED = 4
"""Trainings that `Replay.score` compares its scores with."""


def main(
    problems: list[str] = ["smooth-digits", "smooth-glosses", "smooth-gpt"],  # noqa: B006
    folder: Path = Path("runs/replay"),
    removed: list[float] = [0.05, 0.01],  # noqa: B006
    models: int = 50,
    targets: int = 100,
    groups: int = 20,
    seed: int = 1,
    further: bool = False,
    peers: dict[str, str] = {},  # noqa: B006
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
        seed: of the training, and of what is left out.
        further: whether to compare TRAK with draws and with several states, and `tracin` and `source` of benchmarks/unrolling.py.
        peers: other libraries: name → Python executable of an environment that has it.
        fashion: folder with the four files of Fashion-MNIST.
    """
    find_fashion(fashion)
    for problem in problems:
        judge = _Judge(problem, folder / f"{problem}-{seed}", np.arange(targets) % groups, seed)
        judge.add_peers(peers, fashion)
        judge.add_ours()
        if further:
            judge.add_further()
        print(f"\n{problem}: {judge.quality()}, {judge.seconds:.1f} s\n")
        print("| removed | method | LDS at a fixed seed | processor s | trainings |")
        print("| --- | --- | --- | --- | --- |")
        said = [judge.compare(share, models) for share in removed]
        print("\n" + "\n".join(said), flush=True)


class _Judge:
    """One problem: its recorded training, the scores of every method for groups of targets, and what they cost."""

    def __init__(self, problem: str, folder: Path, groups: Array, seed: int) -> None:
        chosen = PROBLEMS[problem]
        data = chosen.data()
        data.setup()
        self.problem, self.folder, self.groups, self.seed = problem, folder, groups, seed
        self.loader, self.every = data.train_dataloader(), data.test_dataloader()
        self.test = DataLoader(
            Subset(self.every.dataset, range(len(groups))), self.every.batch_size, collate_fn=self.every.collate_fn
        )
        begun = chosen.pretrained(data, folder / "pretrained.pt") if chosen.pretrained else None
        L.seed_everything(seed, verbose=False)
        self.module = begun or chosen.model()
        self.task = chosen.task()
        recording = folder / "recording"
        for each in (recording, folder / "run"):
            shutil.rmtree(each, ignore_errors=True)  # so that all is timed; the bits are the same
        self.seconds = _seconds(lambda: _record(self.module, self.loader, recording, chosen.epochs))
        self.replay = Replay(self.module, self.loader, recording, LOSSES[chosen.task])
        self.scores: dict[str, Array] = {}
        self.cost: dict[str, float] = {}

    def add_ours(self) -> None:
        def replayed() -> None:
            found = self.replay.score(self.test, self.task, self.folder / "run", groups=self.groups, check=0)
            self.scores["replay"] = np.asarray(found.values, np.float64)

        def trak() -> None:
            attribution = TRAK(self.module.eval(), self.task, self.folder / "run")
            attribution.featurize(self.loader)
            self.k = attribution.features().shape[1]
            self.scores["TRAK"] = self._grouped(attribution.score(self.test, "trak").values)

        self.cost["replay"] = _seconds(replayed)
        self.cost["TRAK"] = _seconds(trak)

    def add_further(self) -> None:
        def features() -> None:
            self.stretches, self.last, self.decay = featurized(
                self.module,
                self.task,
                self.replay.folder,
                self.loader,
                self.test,
                self.folder / "run" / "states",
                self.k,
            )

        def scores(name: str, of: Callable[[], Array]) -> None:
            self.scores[name] = self._grouped(of())

        def trak(name: str, states: list[int], draws: int) -> None:
            attribution = TRAK(
                self.module.eval(), self.task, self.folder / "run" / name.replace(" ", "-"), curvature_draws=draws
            )
            attribution.featurize(self.loader, [state_path(self.replay.folder, state) for state in states])
            self.scores[name] = self._grouped(attribution.score(self.test, "trak").values)

        recording = self.replay.recording
        last = recording.num_steps
        known = [*(segment.start for segment in recording.segments), last]
        for name, states, draws in (
            ("TRAK, two draws", [last], 2),
            ("TRAK, three states", [known[len(known) // 2], known[3 * len(known) // 4], last], 0),
        ):
            self.cost[name] = _seconds(partial(trak, name, states, draws))
        needed = _seconds(features)
        for name, of in (
            ("tracin, true learning rates", lambda: tracin(self.stretches)),
            ("source", lambda: source(self.stretches, self.last, self.decay)),
        ):
            self.cost[name] = needed + _seconds(partial(scores, name, of))

    def add_peers(self, peers: dict[str, str], fashion: Path) -> None:
        last = state_path(self.replay.folder, self.replay.recording.num_steps)
        for peer, python in peers.items():
            k = 0 if peer in UNPROJECTED else 2048
            for method, _, _, found, seconds in peer_scores(
                [last], self.problem, self.folder, k, [1], fashion, peer, python
            ):
                self.scores[method], self.cost[method] = self._grouped(found[: len(self.groups)]), seconds

    def compare(self, share: float, models: int) -> str:
        """Print a line for each method, and return what the check says."""
        masks = drawn_subsets(len(self.loader.dataset), models, share, seed=self.seed)
        kept = self.folder / f"outputs-{share}-{models}.npy"
        if not kept.exists():
            np.save(kept, [self.replay.outputs(self.test, self.task, each) for each in [masks[0] * 0 + 1, *masks]])
        outputs = self._grouped(np.load(kept).T).T
        for method, scores in self.scores.items():
            mean, low, high = bootstrap_mean(spearman(masks @ scores.T, outputs[1:]), seed=0)
            price = f"{self.cost[method]:.0f} | {self.cost[method] / self.seconds:.1f}"
            print(f"| {share:.0%} | {method} | {mean:.3f} [{low:.3f}, {high:.3f}] | {price} |", flush=True)
        found = Smoothness((masks - 1) @ self.scores["replay"].T, outputs[1:] - outputs[0], share)
        few = Smoothness(found.predicted[:CHECKED], found.actual[:CHECKED], share)
        return (
            f"explained at {share:.0%}: {few.explained:.3f} by {CHECKED} trainings, {found.explained:.3f} by all; "
            f"of differences {few.explained_differences:.3f} and {found.explained_differences:.3f}; correlation {found.correlation:.3f}"
        )

    def quality(self) -> str:
        """The test accuracy of the recorded model, or its loss."""
        losses = LOSSES[type(self.task)]
        with torch.no_grad():
            if isinstance(self.task, CausalLM):
                found = [float(losses(self.module.eval(), batch).mean()) for batch in self.every]
                return f"test loss {np.mean(found):.3f}"
            right = [(self.module.eval()(inputs).argmax(1) == labels).float() for inputs, labels in self.every]
            return f"test accuracy {float(torch.cat(right).mean()):.3f}"

    def _grouped(self, values: Array) -> Array:
        """The mean over each group of the rows of its targets."""
        return np.stack(
            [np.asarray(values, np.float64)[self.groups == group].mean(0) for group in np.unique(self.groups)]
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
