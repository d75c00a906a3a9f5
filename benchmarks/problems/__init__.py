"""The real problems on which attribution is judged: models, data, and how both are trained.

Each is a LightningModule and a LightningDataModule, small enough that a hundred trainings take minutes on one core.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from problems.fashion import FashionCNN, FashionData, PlainCNN
from problems.glosses import GlossData, GlossTransformer
from problems.gpt import EntryData, EntryGPT, pretrained
from problems.llama import ReviewData, ReviewLlama
from problems.mlp import DigitsMLP
from problems.smooth import SmoothCNN
from trak_lightning.data.dataset import AttributionData
from trak_lightning.demos import DigitsCNN, DigitsDataModule
from trak_lightning.retraining.outputs import Retraining, missing, output_path
from trak_lightning.retraining.retrainer import Retrainer
from trak_lightning.retraining.subsets import SubsetPlan
from trak_lightning.retraining.train import train_ensemble
from trak_lightning.runtime.lightning import quiet_lightning
from trak_lightning.tasks.base import Task
from trak_lightning.tasks.classification import ImageClassification
from trak_lightning.tasks.language import CausalLM


@dataclass(frozen=True)
class Problem:
    """What is trained, and for how long."""

    model: Callable[[], L.LightningModule]
    data: Callable[[], L.LightningDataModule]
    epochs: int
    task: Callable[[], Task] = ImageClassification
    pretrained: Callable[..., L.LightningModule] | None = None
    """(data, path) → the model that every training begins with, trained if the file does not exist."""


SmallGPT = partial(EntryGPT, width=64, layers=2, eps=1e-3)

PROBLEMS = {
    "digits": Problem(DigitsCNN, DigitsDataModule, epochs=15),
    "fashion": Problem(FashionCNN, FashionData, epochs=10),
    "glosses": Problem(GlossTransformer, GlossData, epochs=5),
    "noisy": Problem(DigitsMLP, partial(DigitsDataModule, seed=1, label_noise=0.1), epochs=15),
    "noisy-images": Problem(
        PlainCNN, partial(FashionData, num_train=2500, start=10_000 - 2500, label_noise=0.1), epochs=10
    ),
    "noisy-glosses": Problem(
        partial(GlossTransformer, vocabulary=1000),
        partial(GlossData, vocabulary=1000, seed=1, num_train=3000, label_noise=0.2),
        epochs=8,
    ),
    "fashion-60k": Problem(
        partial(FashionCNN, width=8), partial(FashionData, num_train=60_000, batch_size=128), epochs=5
    ),
    "gpt": Problem(EntryGPT, EntryData, epochs=3, task=CausalLM, pretrained=pretrained),
    "llama": Problem(
        ReviewLlama,
        partial(ReviewData, num_train=1500),
        epochs=3,
        task=CausalLM,
        pretrained=partial(pretrained, make=ReviewLlama),
    ),
    "smooth-digits": Problem(SmoothCNN, partial(DigitsDataModule, batch_size=256), epochs=20),
    "smooth-glosses": Problem(
        partial(GlossTransformer, vocabulary=1000, lr=3e-3, eps=1e-3),
        partial(GlossData, vocabulary=1000, num_train=1500, batch_size=500),
        epochs=20,
    ),
    "smooth-gpt": Problem(
        SmallGPT,
        partial(EntryData, num_train=600, batch_size=100),
        epochs=5,
        task=CausalLM,
        pretrained=partial(pretrained, make=SmallGPT),
    ),
}


def find_fashion(root: Path) -> None:
    """Read the four files of Fashion-MNIST from a folder, for every problem that they belong to."""
    for name in ("fashion", "noisy-images", "fashion-60k"):
        PROBLEMS[name] = replace(PROBLEMS[name], data=partial(PROBLEMS[name].data, root=root))


def projector(k: int | str) -> str | dict[str, Any]:
    """The projector of a benchmark: ``auto``, the default; `sparse_jl` of k dimensions; no projection for 0."""
    return "auto" if k == "auto" else {"name": "sparse_jl", "dim": k} if k else "identity"


@dataclass(frozen=True)
class Trained:
    """A problem with an ensemble and retrained models."""

    model: L.LightningModule
    task: Task
    train: AttributionData
    targets: AttributionData
    checkpoints: list[Path]
    models: Path
    """The folder with subsets and outputs of the retrained models."""
    again: Path
    """The folder with outputs of models that were trained on the same subsets with other seeds."""


def prepare(
    name: str, folder: Path, *, ensemble: int = 10, models: int = 100, again: int = 0, fraction: float = 0.5
) -> Trained:
    """Train what is missing in `folder`: checkpoints to attribute with, and models on other halves to judge scores by.

    Args:
        name: of the problem.
        folder: where models are kept.
        ensemble: number of checkpoints.
        models: number of models to judge by.
        again: number of these to train a second time, with other seeds.
        fraction: of the training set that each checkpoint is trained on.
    """
    problem = PROBLEMS[name]
    data = problem.data()
    data.setup()
    train, targets = AttributionData.of(data.train_dataloader()), AttributionData.of(data.test_dataloader())

    def begin() -> L.LightningModule:
        return problem.pretrained(data, folder / "pretrained.pt") if problem.pretrained else problem.model()

    def fresh(seed: int) -> tuple[L.LightningModule, L.Trainer]:
        with quiet_lightning():
            L.seed_everything(seed, verbose=False)
            return begin(), L.Trainer(
                accelerator="cpu",
                max_epochs=problem.epochs,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )

    def plan(purpose: str, fraction: float) -> SubsetPlan:
        recipe = {"problem": name, "epochs": problem.epochs}
        return SubsetPlan(purpose, len(train), fraction=fraction, seed=0, recipe=recipe)

    where = folder / ("checkpoints" if fraction == 0.5 else f"checkpoints-{fraction:g}")
    checkpoints, _ = train_ensemble(fresh, data, plan("ensemble", fraction), ensemble, where)
    judges = plan("evaluation", 0.5)
    judges.record(folder / "models")
    retrainings = [
        Retraining(output_path(folder / to, model), judges.subset(model), seeds.training_seed(model))
        for to, seeds, count in (("models", judges, models), ("again", plan("again", 0.5), again))
        for model in range(count)
    ]
    Retrainer(fresh, data, problem.task(), train, targets).retrain(missing(retrainings))
    model = problem.model().eval()
    return Trained(model, problem.task(), train, targets, checkpoints, folder / "models", folder / "again")
