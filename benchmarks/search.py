"""Measure how fast an index finds the ten best training samples of a new target, and whether they are those of the full search.

    pip install ./plugins/trak-lightning-faiss
    trak run --config configs/dictionary.yaml                   # real features to begin with; any run will do
    python benchmarks/search.py runs/dictionary --n 1000000 --folder /big   # 2 GB of features, 0.3 GB of index

Training samples are mixtures ``cos(t)·φ_i + sin(t)·φ_j`` of random pairs of the run's features under its first checkpoint, projected to
`dim` dimensions, with the loss weights of i: so many of them have the spectrum, the clusters and the outliers of the real ones. Targets
are the run's own. Times are processor seconds with the threads that torch, BLAS and FAISS are given (OMP_NUM_THREADS), and seconds
on the wall; the full search is that of `TRAK.score` for one target, with the λ and factors of earlier targets kept.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from trak_lightning_faiss import Search

from trak_lightning.run.directory import CheckpointRecord, RunDirectory
from trak_lightning.scoring.ranking import RunningRanking
from trak_lightning.scoring.scores import write_scores
from trak_lightning.stores.base import FeatureRows, FeatureSpec
from trak_lightning.stores.configured import open_store
from trak_lightning.stores.hdf5 import HDF5Store

BLOCK = 1024


def main(
    run_dir: str,
    n: int = 1_000_000,
    dim: int = 512,
    targets: int = 20,
    k: int = 10,
    scorer: str = "trak",
    folder: str | None = None,
) -> None:
    """Print the table.

    Args:
        run_dir: of a run that is featurized.
        n: number of training samples that are made.
        dim: number of dimensions of their features.
        targets: number of targets to search for.
        k: number of best training samples of each.
        scorer: a scorer's name.
        folder: where the features are written and deleted again; a temporary folder if None.
    """
    root = Path(tempfile.mkdtemp(dir=folder))
    try:
        _make(RunDirectory(run_dir), RunDirectory(root), n, dim, targets)
        _measure(root, k, targets, scorer)
    finally:
        shutil.rmtree(root)


def _make(source: RunDirectory, run: RunDirectory, n: int, dim: int, targets: int) -> None:
    checkpoint, store, rng = source.require_checkpoints()[0].id, open_store(source), np.random.default_rng(0)
    real = {split: store.open(split, checkpoint) for split in ("train", "test")}
    rows = {split: found.rows(0, found.spec.num_samples) for split, found in real.items()}
    projection = rng.standard_normal((real["train"].spec.dim, dim), dtype=np.float32) / np.sqrt(dim, dtype=np.float32)
    features = {split: found.features.astype(np.float32) @ projection for split, found in rows.items()}
    made = HDF5Store()
    made.bind(run.features)
    train = made.create(FeatureSpec("train", checkpoint, n, dim, 64, BLOCK))
    for block in train.missing_blocks():
        index = np.array(train.spec.block_range(block))
        (i, j), angle = (
            rng.integers(len(rows["train"]), size=(2, len(index))),
            rng.uniform(0, 2 * np.pi, (len(index), 1)),
        )
        mixed = np.cos(angle) * features["train"][i] + np.sin(angle) * features["train"][j]
        columns = (getattr(rows["train"], name)[i] for name in ("output", "loss_weight", "curvature"))
        train.write_block(block, FeatureRows(index, mixed.astype(np.float32), *columns))
    test, found = made.create(FeatureSpec("test", checkpoint, targets, dim, 1, targets)), rows["test"][:targets]
    test.write_block(
        0, FeatureRows(found.index, features["test"][:targets], found.output, found.loss_weight, found.curvature)
    )
    run.register([CheckpointRecord(checkpoint, "made")])


def _measure(root: Path, k: int, targets: int, scorer: str) -> None:
    table = Table(title=f"{faiss.omp_get_max_threads()} threads, FAISS {faiss.__version__}")
    for column in ("what", "processor", "wall"):
        table.add_column(column, justify="right")

    def timed(what: str, work: Callable[[], Any], times: int = 1) -> Any:
        processor, wall = time.process_time(), time.perf_counter()
        found = work()
        took = (time.process_time() - processor) / times, (time.perf_counter() - wall) / times
        table.add_row(what, *(f"{seconds:.3f} s" for seconds in took))
        return found

    search = timed("Gram matrix, λ and factor", lambda: Search(root, scorer=scorer))
    n, dim = search.num_train, search._checkpoints[0].train.spec.dim
    built = timed("index, built", lambda: search.index)
    again = timed("index, read by a new process", lambda: _read(root, scorer))
    scoring = again._scoring("test", 0)
    counted: list[int] = []
    exact = again._exact
    again._exact = lambda scoring, left, positions: (counted.append(len(positions)), exact(scoring, left, positions))[1]
    again.top(k, target=0)
    counted.clear()
    found = timed(
        f"best {k} of a target, index", lambda: [again.top(k, target=target) for target in range(targets)], targets
    )
    few = min(targets, 3)

    def full(target: int) -> Any:
        ranking = RunningRanking("top", k)
        for tile in scoring.columns(target, target + 1, range(n)):
            ranking.add(tile.scores)
        return ranking.ranking.indices[0]

    timed(f"best {k} of a target, all scores", lambda: [full(target) for target in range(few)], few)
    expected = timed("all targets at once, all scores", lambda: write_scores(root / "all.h5", scoring, {}, top=k)).top(
        k
    )
    recall = [np.isin(expected.indices[target], found[target].indices).mean() for target in range(targets)]
    bits = next((root / "factors/train/search").glob("*.h5")).stat().st_size
    Console(width=110).print(table)
    print(
        f"n = {n:,}, {dim} dimensions: {built.targets.shape[2]} directions, {bits / 1e9:.2f} GB of index, "
        f"{sum(counted) / targets:.0f} exact scores per target, recall@{k} = {np.mean(recall):.4f} (lowest {np.min(recall):.2f})"
    )


def _read(root: Path, scorer: str) -> Search:
    search = Search(root, scorer=scorer)
    assert search.index
    return search


if __name__ == "__main__":
    auto_cli(main)
