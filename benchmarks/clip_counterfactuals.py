"""Does CLIP unlearn a pair when the training pairs that taught it are removed? Emoji and their names.

    python benchmarks/clip_counterfactuals.py

For each held-out target pair, the k most helpful training pairs are found by TRAK and by CLIP similarity (the sum of image–image
and text–text cosine similarity under the same checkpoints). Models are retrained without them, and without as many random pairs.
Targets form groups, whose training pairs are removed together. Prints how far the cosine similarity of the image and text of a target,
and the model output of the task, fall below those of models trained on everything, with 95 % bootstrap intervals over targets. Models
and results are kept in `folder`, so that an interrupted run resumes.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_models import checkpoints, recipe
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from trak_lightning_demos import EmojiCLIP, EmojiDataModule

from trak_lightning import TRAK
from trak_lightning.data.dataset import AttributionData
from trak_lightning.evaluation.lds import bootstrap_mean
from trak_lightning.featurize.fitting import FitSamples
from trak_lightning.retraining.train import train_on_subset
from trak_lightning.tasks.contrastive import Contrastive


def main(
    folder: Path = Path("runs/clip-counterfactuals"),
    targets: int = 24,
    group: int = 8,
    k: int = 10,
    seeds: int = 2,
    members: int = 5,
    epochs: int = 10,
) -> None:
    """Print the table.

    Args:
        folder: folder for models and results.
        targets: number of targets.
        group: number of targets whose training pairs are removed together.
        k: number of training pairs to remove per target.
        seeds: number of models to retrain per removal.
        members: number of checkpoints to attribute with, each trained on a random half.
        epochs: epochs of training.
    """
    data = EmojiDataModule(num_targets=200)
    data.setup()
    n = len(data.train_set)
    fresh = recipe(EmojiCLIP, epochs)
    paths = checkpoints(fresh, data, members, 0.5, folder / "checkpoints")
    trak = TRAK(EmojiCLIP().eval(), "contrastive", folder / "trak")
    trak.featurize(data.train_dataloader(), paths)
    scores = trak.score(data.test_dataloader(), name="test").values[:targets]
    rankings = {"trak": np.argsort(-scores, axis=1)}
    rankings["CLIP similarity"] = np.argsort(-_similarities(data, paths)[:targets], axis=1)
    random = np.random.default_rng(0)
    rankings["random"] = np.stack([random.permutation(n) for _ in range(targets)])

    done = folder / "results.json"
    results: dict[str, list[list[float]]] = json.loads(done.read_text()) if done.exists() else {}
    reference = FitSamples.of(Contrastive(), AttributionData.of(data.train_dataloader()))
    for seed in range(seeds):
        for start in range(0, targets, group):
            members_of = range(start, min(start + group, targets))
            for name in ["nothing", *rankings]:
                key = f"{name}/{seed}/{start if name != 'nothing' else 'all'}/{k}/{group}/{epochs}"
                if key in results:
                    continue
                gone = [] if name == "nothing" else np.concatenate([rankings[name][i, :k] for i in members_of])
                kept = np.setdiff1d(np.arange(n), gone).astype(np.int64)
                model, _ = train_on_subset(fresh, data, kept, 1000 + seed)
                results[key] = _alignment(model.eval(), data, reference, targets)
                done.write_text(json.dumps(results))

    table = Table(
        title=f"{targets} targets in groups of {group}, {k} of {n} training pairs removed for each, {seeds} models retrained"
    )
    for column in ("removed", "cosine similarity falls by", "95 % interval", "model output falls by", "95 % interval"):
        table.add_column(column)
    for name in rankings:
        falls = []
        for target in range(targets):
            start = target // group * group
            pairs = [
                np.array(results[f"nothing/{seed}/all/{k}/{group}/{epochs}"][target])
                - results[f"{name}/{seed}/{start}/{k}/{group}/{epochs}"][target]
                for seed in range(seeds)
            ]
            falls.append(np.mean(pairs, axis=0))
        cells = []
        for column in np.array(falls).T:
            mean, low, high = bootstrap_mean(column, seed=0)
            cells += [f"{mean:.3f}", f"{low:.3f} … {high:.3f}"]
        table.add_row(name, *cells)
    Console(width=120).print(table)


def _similarities(data: EmojiDataModule, paths: list[Path]) -> Any:
    """CLIP similarity (m, n), averaged over the checkpoints."""
    total = 0
    model = EmojiCLIP().eval()
    for path in paths:
        model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        with torch.no_grad():
            test, train = (_embed(model, dataset) for dataset in (data.test_set, data.train_set))
        total = total + sum(one @ other.T for one, other in zip(test, train, strict=True))
    return total.numpy()


def _embed(model: Any, dataset: Any) -> tuple[torch.Tensor, torch.Tensor]:
    found = model(**torch.utils.data.default_collate([dataset[i] for i in range(len(dataset))]))
    return found.image_embeds, found.text_embeds


def _alignment(model: Any, data: EmojiDataModule, reference: Any, targets: int) -> list[list[float]]:
    """Cosine similarity and model output of each target."""
    with torch.no_grad():
        images, texts = _embed(model, data.test_set)
        task = Contrastive()
        task = task.fitted(reference.fit(task, model, lambda source, positions: source.batch(positions)))
        batch = torch.utils.data.default_collate([data.test_set[i] for i in range(targets)])
        output = task.output(model, batch)
    return torch.stack([(images * texts).sum(1)[:targets], output], dim=1).tolist()


if __name__ == "__main__":
    auto_cli(main)
