"""What a second `featurize` costs, which verifies all rows and computes none.

    python benchmarks/reuse.py
    python benchmarks/reuse.py --samples 50000 --checkpoints 10 --dim 512

A small CNN on random color images of 32 × 32 pixels. Times are medians of several calls, each with a new `TRAK` in the same
process; imports are measured in processes of their own. Parts do not overlap.
"""

import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import featurize
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import TensorDataset

from trak_lightning import TRAK
from trak_lightning.data.dataset import AttributionData
from trak_lightning.featurize import job
from trak_lightning.featurize.module import Featurizer
from trak_lightning.featurize.reuse import ContentSample
from trak_lightning.model.checkpoints import Checkpoint

PARTS = {
    "read checkpoints": [(Checkpoint, "of"), (Checkpoint, "load_into")],
    "read three samples twice": [(AttributionData, "fingerprint")],
    "read and hash samples": [(ContentSample, "read")],
    "compare with stored hashes": [(job, "knows_content"), (ContentSample, "changed")],
    "compute a batch under each checkpoint": [(Featurizer, "verify_stored_rows")],
}
"""What is timed on its own."""


def main(samples: int = 10_000, checkpoints: int = 3, dim: int = 2048, threads: int = 2, rounds: int = 5) -> None:
    """Print the table.

    Args:
        samples: training samples.
        checkpoints: models of them.
        dim: k, the number of projected dimensions.
        threads: of torch.
        rounds: calls that are timed.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(samples, 3, 32, 32), torch.randint(10, (samples,)))
    weights = [network().state_dict() for _ in range(checkpoints)]
    projector = {"name": "sparse_jl", "dim": dim}
    with tempfile.TemporaryDirectory(prefix="trak-reuse-") as folder:

        def run() -> float:
            start = time.perf_counter()
            trak = TRAK(network(), "image_classification", Path(folder) / "run", projector=projector)
            computed = trak.featurize(data, weights)
            assert computed == (checkpoints * samples if not calls else 0)
            return time.perf_counter() - start

        calls: list[float] = []
        calls.append(run())
        parts = []
        for _ in range(rounds):
            with timed() as seconds:
                calls.append(run())
            parts.append(seconds)
    first, whole = calls[0], median(calls[1:])
    table = Table(
        title=f"{featurize._machine('cpu')}: {samples} samples, {checkpoints} checkpoints, medians of {rounds}"
    )
    table.add_column("what")
    table.add_column("seconds", justify="right")
    table.add_row("featurize for the first time", f"{first:.2f}")
    table.add_row("featurize for the second time", f"{whole:.2f}", end_section=True)
    known = {name: median(seconds[name] for seconds in parts) for name in PARTS}
    for name, value in {**known, "everything else": whole - sum(known.values())}.items():
        table.add_row(name, f"{value:.3f}")
    table.add_section()
    table.add_row("import trak_lightning", f"{median(importing() for _ in range(rounds)):.2f}")
    Console(width=120).print(table)


def network() -> nn.Sequential:
    """52,000 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4096, 10),
    ).eval()  # fmt: skip


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """The seconds of each part, until the end of the block."""
    seconds: dict[str, float] = defaultdict(float)

    def clocked(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                seconds[name] += time.perf_counter() - start

        return call

    with ExitStack() as stack:
        for name, places in PARTS.items():
            for owner, attribute in places:
                raw = vars(owner)[attribute]
                found = clocked(name, raw.__func__ if isinstance(raw, classmethod) else raw)
                stack.enter_context(
                    patch.object(owner, attribute, classmethod(found) if isinstance(raw, classmethod) else found)
                )
        yield seconds


def importing() -> float:
    """Seconds from the start of a process until `TRAK` is imported, as the process sees it."""
    code = (
        "import time; start = time.perf_counter(); from trak_lightning import TRAK; print(time.perf_counter() - start)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    auto_cli(main)
