"""How long featurizing takes, as a multiple of a training step of the same model on the same batch.

    python benchmarks/featurize.py                                     # what two CPU cores bear
    python benchmarks/featurize.py --models '[resnet18-224, bert-base, gpt2-small]' --device cuda --dtype bfloat16
    python benchmarks/featurize.py --models '[resnet9]' --traker traker/bin/python   # see benchmarks/peer_traker.py

A training step is forward pass, cross-entropy and backward pass with the gradients of all parameters, in eval mode and
without an optimizer: the least that training can cost. Ways of featurizing and training steps take turns; figures are
medians. Memory is the peak of what is allocated above the loaded model.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from jsonargparse import auto_cli
from models import WORKLOADS, Margin, Workload
from rich.console import Console
from rich.table import Table

from trak_lightning import registry
from trak_lightning.data.samples import SampleBatch
from trak_lightning.extractors.hooks import Hooks
from trak_lightning.gradients import ParameterLayout
from trak_lightning.projectors import Projection
from trak_lightning.testing.memory import peak_allocated_bytes

ON_CPU = ["resnet9", "bert-6x384", "gpt2-6x384", "vit-tiny"]


def main(
    models: list[str] = ON_CPU,
    projectors: list[str] = ["sparse_jl", "two_stage"],  # noqa: B006
    dim: int = 2048,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16"] = "float32",
    threads: int = 2,
    rounds: int = 15,
    traker: str | None = None,
) -> None:
    """Print the table.

    Args:
        models: names in benchmarks/models.py.
        projectors: names of projectors, as `trak plugins` lists them.
        dim: k, the number of projected dimensions.
        device: cpu or cuda.
        dtype: bfloat16 runs forward passes under autocast.
        threads: of torch, on a CPU.
        rounds: repetitions of everything, in turn.
        traker: the Python of an environment that has traker, to be timed on image classifiers.
    """
    torch.set_num_threads(threads)
    table = Table(title=f"{_machine(device)}, torch {torch.__version__}, {dtype}, k = {dim}, medians of {rounds}")
    for column in ("model", "what", "time", "÷ training step", "samples/s", "peak memory", "÷ training step"):
        table.add_column(column, justify="left" if column in ("model", "what") else "right")
    for name in models:
        _measure(table, WORKLOADS[name], projectors, dim, torch.device(device), getattr(torch, dtype), rounds, traker)
    Console(width=120).print(table)


def _measure(
    table: Table,
    workload: Workload,
    projectors: list[str],
    dim: int,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    traker: str | None,
) -> None:
    torch.manual_seed(0)
    model = workload.model().to(device).eval()
    inputs, labels = workload.batch(workload.batch_size)
    batch = {key: value.to(device) for key, value in inputs.items()}, labels.to(device)
    runs: dict[str, Callable[[], None]] = {"training step": lambda: _train(workload, model, batch)}
    for name in projectors:
        runs[name] = _featurizing(model, batch, name, dim, device, workload.batch_size)

    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for run in runs.values():
            run()
            run()
        peaks = {name: peak_allocated_bytes(run, device) for name, run in runs.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                times[name].append(_seconds(run, device))
    step, peak = times["training step"], peaks["training step"]
    if traker:
        times["traker"] = _traker(traker, workload.name, dim, device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for name in times:
        ratio = median(own / other for own, other in zip(times[name], step, strict=False))
        table.add_row(
            f"{workload.name} ({parameters / 1e6:.1f} M, B = {workload.batch_size})" if name == "training step" else "",
            name,
            f"{1e3 * median(times[name]):.1f} ms",
            f"{ratio:.2f}",
            f"{workload.batch_size / median(times[name]):.0f}",
            f"{peaks[name] / 1e6:.0f} MB" if name in peaks else "",
            f"{peaks[name] / peak:.2f}" if name in peaks else "",
        )
    table.add_section()


def _traker(python: str, workload: str, dim: int, device: torch.device) -> list[float]:
    """Seconds of three batches, after the rounds of the others: a batch takes as long as all of these."""
    here = Path(__file__).parent
    command = [python, "peer_traker.py", workload, str(dim), device.type, str(torch.get_num_threads()), "3"]
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    done = subprocess.run(command, cwd=here, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def _train(workload: Workload, model: torch.nn.Module, batch: tuple) -> None:
    workload.loss(model, batch).backward()
    model.zero_grad(set_to_none=True)


def _featurizing(
    model: torch.nn.Module, batch: tuple, projector: str, dim: int, device: torch.device, size: int
) -> Callable[[], None]:
    layout, extractor, task, samples = ParameterLayout.of(model), Hooks(), Margin(), SampleBatch.of_rows(batch, size)
    projection = Projection(
        registry.create("projectors", {"name": projector, "dim": dim}), layout, seed=0, checkpoint="0", device=device
    )

    def run() -> None:
        features = projection.zeros(size)
        extractor.extract(model, task, samples, layout, lambda block: projection.add(block, features))

    return run


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _machine(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    lines = open("/proc/cpuinfo").read().splitlines() if platform.system() == "Linux" else []  # noqa: PTH123, SIM115
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    auto_cli(main)
