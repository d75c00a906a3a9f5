"""What the HDF5 store costs, compared with NumPy's own reading and writing of the same bytes.

    python benchmarks/store.py
    python benchmarks/store.py --folder /another/disk --dtype float16

Blocks are those of a run: one file each, 1024 rows by default. Plain files and ours take turns, block by block or pass by
pass; figures are medians of the ratios of neighbors. "To the disk" means that file and folder are flushed (fsync) before the clock
stops; "to the page cache" means that neither is. Files are read from a warm page cache, or after they were dropped from it; both
sides read whole files, one after the other. Ours reads as `FeatureSet.blocks` does, in two threads that read ahead, and compares
checksums; for comparison, also without checksums, and in one thread.
"""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest.mock import patch

import featurize
import numpy as np
import torch
from jsonargparse import auto_cli
from models import WORKLOADS
from rich.console import Console
from rich.table import Table

from trak_lightning.run.atomic import fsync
from trak_lightning.stores.base import FeatureRows, FeatureSpec
from trak_lightning.stores.encoding import STORED, Dtype
from trak_lightning.stores.hdf5 import HDF5Set, HDF5Store
from trak_lightning.stores.schema import to_arrays


def main(
    dim: int = 2048,
    block_size: int = 1024,
    blocks: int = 64,
    rounds: int = 5,
    dtype: Dtype = "float32",
    threads: int = 2,
    folder: str | None = None,
) -> None:
    """Print the table.

    Args:
        dim: k, the number of features per row.
        block_size: rows per block.
        blocks: the number of blocks.
        rounds: how often everything is repeated.
        dtype: the type in the store; plain files hold the same bytes.
        threads: threads of torch.
        folder: where the temporary files are written; the system's temporary folder if None.
    """
    torch.set_num_threads(threads)
    place = Path(tempfile.mkdtemp(prefix="trak-store-", dir=folder))
    try:
        bench = Bench(place, FeatureSpec("train", "0", blocks * block_size, dim, 32, block_size), dtype)
        table = Table(
            title=f"{_machine()}, k = {dim}, {blocks} blocks of {block_size} rows, {dtype}, medians of {rounds}"
        )
        for column in ("what", "ours", "plain", "ratio", "target"):
            table.add_column(column, justify="left" if column == "what" else "right")
        bench.write(table, "write to the disk ÷ tofile", rounds, flush=True)
        bench.write(table, "write to the page cache ÷ tofile", rounds, flush=False)
        bench.read(table, "read, warm ÷ fromfile", rounds, verify=True, warm=True)
        bench.read(table, "read, warm, no checksums ÷ fromfile", rounds, verify=False, warm=True)
        bench.read(table, "read, warm, nothing ahead ÷ fromfile", rounds, verify=True, warm=True, ahead=0)
        bench.read(table, "read, cold ÷ fromfile", rounds, verify=True, warm=False)
        bench.share(table, rounds)
        bench.size(table)
        Console(width=120).print(table)
    finally:
        shutil.rmtree(place)


class Bench:
    """A feature set in `place`, and plain files of the same bytes next to it."""

    def __init__(self, place: Path, spec: FeatureSpec, dtype: Dtype) -> None:
        self.spec, self.dtype, self.plain = spec, dtype, place / "plain"
        self.plain.mkdir()
        self.store = HDF5Store(dtype)
        self.store.bind(place / "features")
        created = self.store.create(spec)
        assert isinstance(created, HDF5Set)
        self.set = created
        generator = np.random.default_rng(0)
        self.rows = []
        for block in range(min(spec.num_blocks, 4)):  # used in turn
            samples = spec.block_range(block)
            features = generator.standard_normal((len(samples), spec.dim), np.float32)
            columns = [generator.standard_normal(len(samples), np.float32) for _ in range(3)]
            self.rows.append(FeatureRows(np.arange(samples.start, samples.stop), features, *columns))

    def block(self, block: int) -> FeatureRows:
        rows, samples = self.rows[block % len(self.rows)], self.spec.block_range(block)
        index = np.arange(samples.start, samples.stop)
        return FeatureRows(index, rows.features, rows.output, rows.loss_weight, rows.curvature)

    def write_plain(self, block: int, flush: bool) -> None:
        path = self.plain / f"{block:05d}"
        with path.open("wb") as file:
            for values in self.arrays[block % len(self.rows)]:
                values.tofile(file)
        if flush:
            fsync(path)
            fsync(self.plain)

    def write(self, table: Table, what: str, rounds: int, *, flush: bool) -> None:
        self.arrays = [list(to_arrays(rows, self.dtype, "").values()) for rows in self.rows]
        ours, plain = [], []
        for _ in range(rounds):
            for block in range(self.spec.num_blocks):
                rows = self.block(block)
                for path in (self.plain / f"{block:05d}", self.set.folder / f"block-{block:05d}.h5"):
                    path.unlink(missing_ok=True)  # every file of a run is new
                with patch("trak_lightning.run.atomic.fsync", fsync if flush else lambda path: None):
                    ours.append(_seconds(lambda block=block, rows=rows: self.set.write_block(block, rows)))
                plain.append(_seconds(lambda block=block: self.write_plain(block, flush)))
        _add(table, what, ours, plain, "≤ 1.5")

    def read(self, table: Table, what: str, rounds: int, *, verify: bool, warm: bool, ahead: int = 2) -> None:
        reader = HDF5Set(self.set.folder, verify=verify)
        plain_files = [self.plain / f"{block:05d}" for block in range(self.spec.num_blocks)]

        def read_ours() -> None:
            for rows in reader.blocks(ahead=ahead):
                assert len(rows)

        def read_plain() -> None:
            for path in plain_files:
                values = np.fromfile(path, STORED[self.dtype])
                assert len(values)

        os.sync()  # so that nothing written before is flushed meanwhile
        ours, plain = [], []
        for number in range(rounds * (4 if warm else 2) + 1):
            for passes, files, run in (
                (ours, list(reader.folder.glob("*.h5")), read_ours),
                (plain, plain_files, read_plain),
            ):
                if not warm:
                    for path in files:
                        _drop(path)
                seconds = _seconds(run)
                if number:  # the first pass fills the page cache
                    passes.append(seconds)
        _add(table, what, ours, plain, "≤ 1.3" if verify and ahead else "")

    def share(self, table: Table, rounds: int) -> None:
        """Time to store a block on the disk ÷ time to compute and store it; a run stores it while it computes the next one."""
        workload = WORKLOADS["resnet9"]
        torch.manual_seed(0)
        model = workload.model().eval()
        inputs, labels = workload.batch(workload.batch_size)
        run = featurize._featurizing(
            model, (inputs, labels), "sparse_jl", self.spec.dim, torch.device("cpu"), workload.batch_size
        )
        run()
        batches = self.spec.block_size / workload.batch_size
        storing, computing = [], []
        for number in range(rounds):
            computing.append(_seconds(run) * batches)
            rows = self.block(number % self.spec.num_blocks)
            storing.append(
                _seconds(lambda number=number, rows=rows: self.set.write_block(number % self.spec.num_blocks, rows))
            )
        share = median(s / (s + c) for s, c in zip(storing, computing, strict=True))
        table.add_row(
            "storing ÷ featurizing and storing, ResNet-9",
            f"{1e3 * median(storing):.1f} ms",
            f"{1e3 * median(computing):.0f} ms",
            f"{100 * share:.2f} %",
            "≤ 3 %",
        )

    def size(self, table: Table) -> None:
        row = sum(path.stat().st_size for path in self.set.folder.iterdir()) / self.spec.num_samples
        features = self.spec.dim * np.dtype(STORED[self.dtype]).itemsize
        table.add_row("bytes per row beyond its features", f"{row:.1f}", f"{features}", f"{row - features:.1f}", "≤ 32")


def _add(table: Table, what: str, ours: list[float], plain: list[float], target: str) -> None:
    ratio = median(own / other for own, other in zip(ours, plain, strict=True))
    table.add_row(what, f"{1e3 * median(ours):.2f} ms", f"{1e3 * median(plain):.2f} ms", f"{ratio:.2f}", target)


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _drop(path: Path) -> None:
    """Drop a file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _machine() -> str:
    return f"{featurize._machine('cpu')}, NumPy {np.__version__}, {platform.system()}"


if __name__ == "__main__":
    auto_cli(main)
