"""Bandwidth of the kernels ÷ bandwidth of a copy in the same run, and samples a second beside `fast_jl`.

    python plugins/trak-lightning-triton/benchmarks/bandwidth.py                         # on a CUDA device
    TRITON_INTERPRET=1 python …/bandwidth.py --size 5000 --batch 4 --dim 128 --rounds 1  # only to see that it runs

The gradient of B samples is one contiguous (B, p) tensor. Its bytes ÷ the time of a projection is the bandwidth achieved; a
copy reads and writes, so its bandwidth is twice the bytes ÷ its time. Kernels and copies take turns; figures are medians.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor
from trak_lightning_triton.stream import runs_on

from trak_lightning import registry
from trak_lightning.gradients import ParameterSlot


def main(
    size: int = 10_000_000,
    batch: int = 32,
    dim: int = 2048,
    dtype: str = "float32",
    projectors: list[str] = ["sparse_jl_triton", "sparse_jl", "rademacher_triton"],  # noqa: B006
    rounds: int = 20,
) -> None:
    """Print the table.

    Args:
        size: p, the number of parameters.
        batch: B, the number of samples.
        dim: k, the number of projected dimensions.
        dtype: of the gradient: float32, bfloat16 or float16.
        projectors: names, as `trak plugins` lists them.
        rounds: repetitions of everything, in turn.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not runs_on(device):
        raise SystemExit("there is no CUDA device; TRITON_INTERPRET=1 runs the kernels on the CPU, slowly")
    gradient = torch.randn(batch, size, device=device).to(getattr(torch, dtype))
    copy = torch.empty_like(gradient)
    runs: dict[str, Callable[[], object]] = {"copy": lambda: copy.copy_(gradient)}
    for name in projectors:
        runs[name] = _projection(name, gradient, dim, device)
    fast_jl = _fast_jl(gradient, dim)
    if fast_jl is not None:
        runs["fast_jl (rademacher)"] = fast_jl

    for run in runs.values():
        run()  # compiles
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(_seconds(run, device))
    bytes_read = gradient.numel() * gradient.element_size()
    copied = 2 * bytes_read / median(times["copy"])
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, interpreted"
    table = Table(title=f"{machine}, p = {size:,}, B = {batch}, k = {dim}, {dtype}, medians of {rounds}")
    for column in ("what", "time", "GB/s", "÷ copy", "samples/s"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name in runs:
        elapsed = median(times[name])
        rate = copied if name == "copy" else bytes_read / elapsed
        table.add_row(
            name, f"{1e3 * elapsed:.2f} ms", f"{rate / 1e9:.1f}", f"{rate / copied:.2f}", f"{batch / elapsed:.0f}"
        )
    Console(width=110).print(table)
    if fast_jl is None:
        print("fast_jl is not installed: pip install fast_jl needs a CUDA toolkit that matches torch")


def _projection(name: str, gradient: Tensor, dim: int, device: torch.device) -> Callable[[], object]:
    slot = ParameterSlot("weight", (gradient.shape[1],), 0)
    block = registry.create("projectors", {"name": name, "dim": dim}).block(slot, seed=1, device=device)
    out = torch.zeros(len(gradient), dim, device=device)
    return lambda: block(gradient, out)


def _fast_jl(gradient: Tensor, dim: int) -> Callable[[], object] | None:
    """The reference's kernel, as its library calls it: it takes k in multiples of 512, and 8, 16 or 32 samples."""
    if not gradient.is_cuda:
        return None
    try:
        import fast_jl
    except ImportError:
        return None
    processors = torch.cuda.get_device_properties(gradient.device).multi_processor_count
    kernel = getattr(fast_jl, f"project_rademacher_{min(32, max(8, len(gradient)))}")
    return lambda: kernel(gradient, dim, 1, processors)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
