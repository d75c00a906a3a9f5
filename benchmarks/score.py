"""Measure throughput and memory of the Gram matrix and of scoring, compared with plain matrix products of the same shapes.

    python benchmarks/score.py                                  # n = 10,000 and 100,000
    python benchmarks/score.py --sizes [1000000] --folder /big --rounds 1 --dtype float16  # 4 GB of features
    python benchmarks/score.py --traker peers/traker/bin/python  # see benchmarks/peers/with_traker.py

Features are random numbers, written to disk as in a run; reading them is part of the time. The plain products are repeated
``torch.matmul`` calls on one block that stays in memory: the best that the processor can do. They take turns with ours; figures
are medians. Ours read every row and rank every score; "all scores, written" also writes the m × n matrix and flushes it to the
disk.
"""

import json
import platform
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from trak_lightning.scoring.base import CheckpointFeatures
from trak_lightning.scoring.gram import gram
from trak_lightning.scoring.inner_products import InnerProducts, Part
from trak_lightning.scoring.scores import Scores, write_scores
from trak_lightning.scoring.trak import Trak
from trak_lightning.stores.base import FeatureRows, FeatureSet, FeatureSpec
from trak_lightning.stores.hdf5 import HDF5Store

BLOCK = 1024
PLAIN = {
    "Gram matrix": "matmul: Gram",
    "top 100 of all scores": "matmul: scores",
    "all scores, written": "matmul: scores",
}
"""The plain product with which each is compared: it reads nothing and keeps nothing."""


def main(
    sizes: list[int] = [10_000, 100_000],  # noqa: B006
    dim: int = 2048,
    targets: int = 1000,
    folder: str | None = None,
    rounds: int = 3,
    dtype: str = "float32",
    traker: str | None = None,
    what: list[str] | None = None,
    reuse: str | None = None,
) -> None:
    """Print the table.

    Args:
        sizes: n, numbers of training samples.
        dim: k, the number of projected dimensions.
        targets: m, the number of targets.
        folder: where features are written and deleted again; a temporary folder if None.
        rounds: repetitions of everything, in turn.
        dtype: the type in which features are stored.
        traker: the Python of an environment with traker, which is then timed on the same features.
        what: only these rows, by their names in the table.
        reuse: a folder in which an earlier run wrote the features, one size; nothing in it is deleted.
    """
    title = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, k = {dim}, m = {targets}"
    table = Table(title=f"{title}, medians of {rounds}")
    for column in ("n", "what", "time", "GFLOP/s", "÷ matmul", "peak memory so far"):
        table.add_column(column, justify="right")
    for n in sizes:
        root = Path(reuse or tempfile.mkdtemp(dir=folder))
        try:
            _measure(table, n, dim, targets, root, rounds, dtype, traker, what)
        finally:
            if reuse is None:
                shutil.rmtree(root)
    Console(width=110).print(table)


def _measure(
    table: Table,
    n: int,
    k: int,
    m: int,
    root: Path,
    rounds: int,
    dtype: str,
    traker: str | None,
    what: list[str] | None,
) -> None:
    store = HDF5Store(dtype=dtype)  # type: ignore[arg-type]
    store.bind(root)
    train, target = _fill(store, "train", n, k), _fill(store, "test", m, k)
    features = CheckpointFeatures(train, target)
    kept = CheckpointFeatures(train, target, cache=root / "factors")
    block, rows = torch.randn(BLOCK, k), torch.randn(m, k)
    one = _fill(store, "one", 1, k)
    repetitions = n / BLOCK

    def plain_gram() -> None:
        for _ in range(round(repetitions)):
            torch.matmul(block.T, block)

    def plain_scores() -> None:
        for _ in range(round(repetitions)):
            torch.matmul(rows, block.T)

    def ours_gram() -> None:
        gram(features, "residual")

    def ours_scores() -> None:
        write_scores(root / "scores.h5", InnerProducts([features], [Part()]), {}, top=100)

    def ours_written() -> None:
        write_scores(root / "all.h5", InnerProducts([features], [Part()]), {})
        (root / "all.h5").unlink()

    def whole() -> None:
        write_scores(root / "scores.h5", Trak().fit([features]), {}, top=100)

    def one_target() -> None:
        write_scores(root / "one.h5", Trak().fit([replace(kept, targets=one)]), {}, top=100)

    def look_up() -> None:
        Scores(root / "scores.h5").top(10, target=m // 2)

    works: list[tuple[str, Callable[[], None], float]] = [
        ("matmul: Gram", plain_gram, 2 * n * k * k),
        ("Gram matrix", ours_gram, 2 * n * k * k),
        ("matmul: scores", plain_scores, 2 * n * k * m),
        ("top 100 of all scores", ours_scores, 2 * n * k * m),
        ("all scores, written", ours_written, 2 * n * k * m),
        ("trak, all in all", whole, 2 * n * k * (k + m)),
        ("one new target, factors kept", one_target, 2 * n * k),
        ("top 10 of one target, from the score file", look_up, 0),
    ]
    works = [work for work in works if what is None or work[0] in what]
    if one_target in [work for _, work, _ in works]:
        Trak().fit([kept])
    times: dict[str, list[float]] = {name: [] for name, *_ in works}
    memory: dict[str, float] = {}
    for _ in range(rounds):
        for name, work, _flops in works:
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
            memory[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    for name, _, flops in works:
        seconds = median(times[name])
        plain = PLAIN.get(name)
        ratio = f"{median(times[plain]) / seconds:.2f}" if plain in times else ""
        table.add_row(
            f"{n:,}", name, f"{seconds:.3f} s", f"{flops / seconds / 1e9:.0f}", ratio, f"{memory[name]:.2f} GB"
        )
    if traker is not None:
        for name, found in (("train", train), ("targets", target)):
            np.save(root / f"{name}.npy", found.rows(0, found.spec.num_samples).features)
        command = [traker, str(Path(__file__).parent / "peers/finalize_traker.py")]
        done = subprocess.run(
            [*command, str(root / "train.npy"), str(root / "targets.npy")],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        took = json.loads(done.stdout.splitlines()[-1])
        table.add_row(f"{n:,}", "traker, all in all", f"{took['seconds']:.3f} s", "", "", f"{took['gb']:.2f} GB")


def _fill(store: HDF5Store, split: str, n: int, k: int) -> FeatureSet:
    created = store.create(FeatureSpec(split, "c", n, k, 64, BLOCK, {}))
    rng = np.random.default_rng(0)
    for block in created.missing_blocks():
        inside = created.spec.block_range(block)
        phi = rng.standard_normal((len(inside), k), dtype=np.float32)
        q = rng.uniform(0, 1, len(inside)).astype(np.float32)
        created.write_block(block, FeatureRows(np.arange(inside.start, inside.stop), phi, q, q, q))
    return created


if __name__ == "__main__":
    auto_cli(main)
