"""Measure how featurizing scales over processes on this machine, and compute what that predicts for many GPUs.

``python benchmarks/scaling.py measure`` times one process of one thread against several of them, which share one run
directory as ranks of one job. ``python benchmarks/scaling.py project`` prints the cost model for 8, 64 and 512 GPUs.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from statistics import median

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table


def measure(
    model: str = "resnet9",
    samples: int = 512,
    block: int = 32,
    dim: int = 2048,
    ranks: list[int] = [1, 2],  # noqa: B006
    rounds: int = 3,
) -> None:
    """Print seconds, samples per second and speed-up.

    Args:
        model: a name in benchmarks/models.py.
        samples: number of samples that are timed, after the first batch of every rank, in which the extractor is rehearsed.
        block: samples per block and per batch.
        dim: k, the number of projected dimensions.
        ranks: the numbers of processes to measure.
        rounds: repetitions of everything, in turn.
    """
    found: dict[int, list[dict[str, float]]] = {world: [] for world in ranks}
    for _ in range(rounds):
        for world in ranks:
            found[world].append(_job(model, samples, block, dim, world))
    table = Table(title=f"{model}, {samples} samples, k = {dim}, one thread a process, medians of {rounds}")
    for column in ("processes", "featurizing", "samples/s", "speed-up", "cost model", "start and first batch"):
        table.add_column(column, justify="right")
    one = [each["seconds"] for each in found[ranks[0]]]
    for world in ranks:
        seconds = [each["seconds"] for each in found[world]]
        blocks = -(-samples // block)
        predicted = median(one) * -(-blocks // world) / -(-blocks // ranks[0])
        table.add_row(
            str(world),
            f"{median(seconds):.2f} s",
            f"{samples / median(seconds):.1f}",
            f"{median(first / own for first, own in zip(one, seconds, strict=True)):.2f}",
            f"{predicted:.2f} s",
            f"{median(each['start'] for each in found[world]):.1f} s",
        )
    Console(width=120).print(table)


def project(
    n: int = 1_280_000,
    checkpoints: int = 10,
    dim: int = 4096,
    samples_per_second: float = 1000.0,
    sample_bytes: int = 110_000,
    start_seconds: float = 60.0,
    first_batch_seconds: float = 5.0,
    block_size: int = 1024,
    write_bandwidth: float = 10e9,
    read_bandwidth: float = 20e9,
    link_bandwidth: float = 25e9,
    gram_flops: float = 10e12,
    gpus: list[int] = [8, 64, 512],  # noqa: B006
) -> None:
    """Print the predictions of the cost model. Every default is an assumption.

    Args:
        n: training samples.
        checkpoints: M.
        dim: k, stored in float32.
        samples_per_second: samples that one GPU featurizes per second.
        sample_bytes: bytes read per sample and checkpoint.
        start_seconds: seconds for imports, for loading a checkpoint for the first time, and for the process group.
        first_batch_seconds: seconds for the rehearsal of the first batch of a checkpoint.
        block_size: samples per block.
        write_bandwidth: bytes per second that the file system writes for all GPUs together.
        read_bandwidth: bytes per second that it reads for all GPUs together.
        link_bandwidth: bytes per second between two devices, for adding Gram matrices.
        gram_flops: operations per second of one GPU in float32 products of features.
        gpus: numbers of GPUs.
    """
    table = Table(title=f"n = {n:,}, M = {checkpoints}, k = {dim}, {samples_per_second:g} samples/s a GPU")
    columns = (
        "GPUs",
        "compute",
        "rest of last block",
        "read",
        "write",
        "Gram",
        "all-reduce",
        "all in all",
        "efficiency",
    )
    for column in columns:
        table.add_column(column, justify="right")
    compute_one = checkpoints * n / samples_per_second
    for world in gpus:
        blocks = checkpoints * -(-n // block_size)
        compute = compute_one / world
        # Blocks are not split: the job ends with the rank that has one more.
        rest = -(-blocks // world) * block_size / samples_per_second - compute
        overhead = start_seconds + first_batch_seconds * checkpoints
        read = checkpoints * n * sample_bytes / read_bandwidth
        write = checkpoints * n * (dim + 3) * 4 / write_bandwidth
        gram = checkpoints * n * dim**2 / gram_flops / world
        reduce = checkpoints * 2 * (world - 1) / world * 8 * dim**2 / link_bandwidth
        # Loading and writing overlap with computing: the slowest of the three determines the time.
        total = overhead + max(compute + rest, read, write) + gram + reduce
        alone = overhead + max(compute_one, read, write) + gram * world
        cells = (compute, max(rest, 0.0), read, write, gram, reduce, total)
        table.add_row(str(world), *(f"{value:,.1f} s" for value in cells), f"{alone / total / world:.0%}")
    Console(width=140).print(table)


def _job(model: str, samples: int, block: int, dim: int, world: int) -> dict[str, float]:
    """Run one job of `world` ranks; return what rank 0 reports."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(world):
            launched = {
                "LOCAL_RANK": rank,
                "RANK": rank,
                "GROUP_RANK": 0,
                "WORLD_SIZE": world,
                "TORCHELASTIC_RUN_ID": "b",
            }
            variables = {**launched, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
            environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
            command = [sys.executable, __file__, "rank", folder, model, *map(str, (samples, block, dim, world))]
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        outputs = [process.communicate()[0] for process in processes]
    said = json.loads(outputs[0].splitlines()[-1])
    return {"seconds": said["seconds"], "start": said["began"] - started}


def _rank(folder: str, name: str, samples: int, block: int, dim: int, world: int) -> None:
    import lightning as L
    import torch
    from models import WORKLOADS, Margin
    from torch.utils.data import TensorDataset

    from trak_lightning import TRAK

    class Task(Margin):
        def output(self, model, batch):  # type: ignore[no-untyped-def]
            return super().output(model, (dict(zip(keys, batch, strict=False)), batch[-1]))

    torch.set_num_threads(1)
    torch.manual_seed(0)
    workload = WORKLOADS[name]
    model = workload.model().eval()
    inputs, labels = workload.batch(samples)
    keys = list(inputs)
    data = TensorDataset(*inputs.values(), labels)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )

    trak = TRAK(model, Task(), folder, projector={"name": "sparse_jl", "dim": dim}, trainer=trainer)
    warm = torch.utils.data.Subset(data, range(block * world))
    trak.featurize(warm, batch_size=block, block_size=block, split="warm")
    trainer.strategy.barrier()
    began = time.time()
    trak.featurize(data, batch_size=block, block_size=block, split="timed")
    trainer.strategy.barrier()
    print(json.dumps({"seconds": time.time() - began, "began": began}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        _rank(*sys.argv[2:4], *map(int, sys.argv[4:]))
    else:
        auto_cli({"measure": measure, "project": project})
