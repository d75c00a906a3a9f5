"""Which training examples taught T5 a fact? Questions about countries or words, asked in ways not seen in training.

    pip install rank-bm25
    python benchmarks/fact_tracing.py
    python benchmarks/fact_tracing.py --subject words

Two training examples state the fact of each target in other words. Prints how high each method ranks them: the mean reciprocal rank
of the first, and the share of the two among the first ten, with 95 % bootstrap intervals over targets. All methods have the same
targets, and gradient methods the same checkpoints, which were trained on the whole training set. BM25 compares question and answer, or
the question alone.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_models import checkpoints, recipe
from jsonargparse import auto_cli
from rank_bm25 import BM25Okapi
from rich.console import Console
from rich.table import Table
from trak_lightning_demos import QuestionDataModule, QuestionT5
from trak_lightning_demos.questions import Subject
from trak_lightning_demos.words import words

from trak_lightning import TRAK
from trak_lightning.evaluation.lds import bootstrap_mean

METHODS: dict[str, Any] = {
    "trak": {"name": "trak"},
    "trak, normalize: self_influence": {"name": "trak", "normalize": "self_influence"},
    "trak as in the paper: W = I, λ = 0": {"name": "trak", "regularization": 0.0, "weights": "none"},
    "gradient_cosine": {"name": "gradient_cosine"},
    "tracin": {"name": "tracin"},
}


def main(
    subject: Subject = "countries",
    folder: Path = Path("runs/fact-tracing"),
    targets: int = 200,
    members: int = 2,
    epochs: int = 30,
    dim: int = 2048,
) -> None:
    """Print the table.

    Args:
        subject: subject of the questions.
        folder: folder for models and features.
        targets: number of facts to trace.
        members: number of checkpoints.
        epochs: epochs of training.
        dim: dimension k of the projection.
    """
    data = QuestionDataModule(subject, num_targets=targets)
    data.setup()
    make, folder = partial(QuestionT5, subject), folder / subject
    paths = checkpoints(recipe(make, epochs), data, members, 1.0, folder / "checkpoints")
    truth = np.array(data.test_set.facts)[:, None] == np.array(data.train_set.facts)[None]
    print(
        f"{len(data.train_set)} training examples; answers right: {_accuracy(make().eval(), data, paths):.0%} of the targets"
    )

    trak = TRAK(make().eval(), "seq2seq_lm", folder / f"sequence-{dim}", projector={"name": "sparse_jl", "dim": dim})
    trak.featurize(data.train_dataloader(), paths)
    found = {"BM25": _bm25(data), "BM25, question alone": _bm25(data, 1)}
    for name, scorer in METHODS.items():
        found[name] = np.array(trak.score(data.test_dataloader(), "test", scorer=scorer).values)
    token = TRAK(
        make().eval(),
        {"name": "seq2seq_lm", "level": "token"},
        folder / f"token-{dim}",
        projector={"name": "sparse_jl", "dim": dim},
    )
    token.featurize(data.train_dataloader(), paths)
    found["trak, level: token"] = np.array(token.score(data.test_dataloader(), "test").values)
    found["random"] = np.random.default_rng(0).random(truth.shape)

    table = Table(title=f"{targets} facts, {members} checkpoints, k = {dim}")
    for column in ("method", "MRR", "95 % interval", "recall@10", "95 % interval"):
        table.add_column(column)
    for name, scores in found.items():
        ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1) + 1
        reciprocal = np.where(truth, 1 / ranks, 0).max(axis=1)
        recall = (truth & (ranks <= 10)).sum(axis=1) / truth.sum(axis=1)
        cells = []
        for values in (reciprocal, recall):
            mean, low, high = bootstrap_mean(values, seed=0)
            cells += [f"{mean:.3f}", f"{low:.3f} … {high:.3f}"]
        table.add_row(name, *cells)
    Console(width=120).print(table)


def _bm25(data: QuestionDataModule, parts: int = 2) -> Any:
    """BM25 scores (m, n) of question and answer, or of the question alone if `parts` is 1."""
    index = BM25Okapi([words(" ".join(text[:parts])) for text in data.train_set.texts])
    return np.stack([index.get_scores(words(" ".join(text[:parts]))) for text in data.test_set.texts])


def _accuracy(model: QuestionT5, data: QuestionDataModule, paths: list[Path]) -> float:
    """Share of targets of which every word is the most probable one given those before it, averaged over checkpoints."""
    right = []
    for path in paths:
        model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        with torch.no_grad():
            for batch in data.test_dataloader():
                labels = batch["labels"]
                right += ((model(**batch).logits.argmax(-1) == labels) | (labels == -100)).all(1).tolist()
    return float(np.mean(right))


if __name__ == "__main__":
    auto_cli(main)
