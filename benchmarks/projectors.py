"""Measure how long a projection takes, as a multiple of reading the gradient once, and how well it preserves inner products.

    python benchmarks/projectors.py speed
    python benchmarks/projectors.py speed --sizes 1e8 --dims 2048 --projectors sparse_jl
    python benchmarks/projectors.py error

Speed: the gradient of B samples is in memory as matrices of at most 1024 × 1024 entries. The read pass sums all of its entries.
Projections and read passes take turns; figures are medians. There are enough batches that none is in a cache when its turn comes;
with `--memory 0` there is one batch. A projector that would need more than `limit` operations is left out.

Error: of ⟨Pg, Ph⟩ for all pairs of gradients of the digits network, as a fraction of ‖g‖‖h‖, over several seeds: root mean
square and 99th percentile, and both as multiples of a dense ±1 matrix's.
"""

import math
import time
from statistics import median

import torch
from featurize import _machine as machine
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from trak_lightning import registry
from trak_lightning.data.samples import SampleBatch
from trak_lightning.demos import DigitsCNN, DigitsDataModule
from trak_lightning.extractors.hooks import Hooks
from trak_lightning.gradients import DenseBlock, ParameterLayout, ParameterSlot
from trak_lightning.projectors import Projection, Projector
from trak_lightning.tasks.classification import ImageClassification

CHEAP = ["sparse_jl", "hadamard", "random_mask"]


def speed(
    sizes: list[float] = [1e5, 1e6, 1e7, 1e8],  # noqa: B006
    dims: list[int] = [512, 2048, 8192, 32768],  # noqa: B006
    projectors: list[str] = [*CHEAP, "rademacher"],  # noqa: B006
    gigabytes: float = 2,
    memory: float = 0.5,
    threads: int = 2,
    rounds: int = 7,
    limit: float = 4e9,
    device: str = "cpu",
) -> None:
    """Print the table of times.

    Args:
        sizes: p, the numbers of parameters.
        dims: k, the numbers of projected dimensions.
        projectors: names, as `trak plugins` lists them.
        gigabytes: of gradients in memory, which decides B; 64 samples at most.
        memory: gigabytes that batches take together at least.
        threads: of torch, on a CPU.
        rounds: repetitions of everything, in turn.
        limit: of p·k, for projectors that make a dense matrix.
        device: cpu or cuda.
    """
    torch.set_num_threads(threads)
    table = Table(
        title=f"{machine(device)}, torch {torch.__version__}: time per batch ÷ one read pass, medians of {rounds}"
    )
    for column in ("p", "B", "read pass", "GB/s", "projector", *(f"k = {dim}" for dim in dims)):
        table.add_column(column, justify="left" if column == "projector" else "right")
    for size in sizes:
        layout = matrices(int(size))
        B = max(1, min(64, int(gigabytes * 1e9 / 4 / layout.numel)))
        count = max(1, math.ceil(memory * 1e9 / 4 / B / layout.numel))
        batches = [
            [DenseBlock(slot.name, torch.randn(B, *slot.shape, device=device)) for slot in layout] for _ in range(count)
        ]
        reads: list[float] = []
        rows = []
        for name in projectors:
            cells = []
            for dim in dims:
                if name in ("rademacher", "gaussian") and layout.numel * dim > limit:
                    cells.append("–")
                    continue
                projection = Projection(make(name, dim), layout, seed=0, checkpoint="0", device=device)
                ratios = []
                for turn in range(rounds + 1):
                    read, projected = _read(batches, device), _project_all(projection, batches, B, device)
                    if turn:  # the first makes the matrix
                        reads.append(read)
                        ratios.append(projected / read)
                cells.append(f"{median(ratios):.2f}")
            rows.append((name, cells))
        for number, (name, cells) in enumerate(rows):
            seconds_each = median(reads) / count
            rate = 4 * B * layout.numel / seconds_each / 1e9
            head = (f"{size:.0e}", str(B), f"{1e3 * seconds_each:.1f} ms", f"{rate:.1f}") if not number else ("",) * 4
            table.add_row(*head, name, *cells)
        table.add_section()
    Console(width=140).print(table)


def error(
    dims: list[int] = [512, 2048],  # noqa: B006
    projectors: list[str] = [  # noqa: B006
        "rademacher", "gaussian", "sparse_jl", "sparse_jl nnz=4", "hadamard", "two_stage", "random_mask",
    ],
    samples: int = 64,
    seeds: int = 10,
    threads: int = 2,
) -> None:  # fmt: skip
    """Print the table of errors.

    Args:
        dims: k, the numbers of projected dimensions.
        projectors: names, each with options after it.
        samples: gradients, all pairs of which are compared.
        seeds: independent projections.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    layout, gradients = digits_gradients(samples)
    flat = torch.cat([block.grad.flatten(1) for block in gradients], 1).double()
    norms = flat.norm(dim=1)
    pairs = torch.triu_indices(samples, samples, 1)
    exact = (flat @ flat.T)[pairs[0], pairs[1]]
    table = Table(title=f"Digits network, p = {layout.numel:,}: {exact.numel()} pairs × {seeds} seeds")
    for column in ("k", "projector", "rms · √k", "÷ dense", "99 % · √k", "÷ dense"):
        table.add_column(column, justify="left" if column == "projector" else "right")
    for dim in dims:
        dense: tuple[float, float] | None = None
        for choice in projectors:
            errors = []
            for seed in range(seeds):
                projection = Projection(make(choice, dim), layout, seed=seed, checkpoint="0", device="cpu")
                features = projection.zeros(samples)
                for block in gradients:
                    projection.add(block, features)
                found = (features.double() @ features.double().T)[pairs[0], pairs[1]]
                errors.append((found - exact) / (norms[pairs[0]] * norms[pairs[1]]))
            every = torch.cat(errors).abs() * dim**0.5
            rms, tail = float(every.square().mean().sqrt()), float(every.quantile(0.99))
            dense = dense or (rms, tail)
            first = choice == projectors[0]
            table.add_row(
                str(dim) if first else "",
                choice,
                f"{rms:.3f}",
                f"{rms / dense[0]:.2f}",
                f"{tail:.3f}",
                f"{tail / dense[1]:.2f}",
            )
        table.add_section()
    Console(width=120).print(table)


def make(choice: str, dim: int) -> Projector:
    """A projector from a name and options, such as ``sparse_jl nnz=4``."""
    name, *options = choice.split()
    given = dict(option.split("=") for option in options)
    projector: Projector = registry.create(
        "projectors", {"name": name, "dim": dim, **{key: int(value) for key, value in given.items()}}
    )
    return projector


def matrices(size: int) -> ParameterLayout:
    """`size` parameters in square matrices of at most 1024 rows."""
    side = min(1024, int(size**0.5))
    count = round(size / side**2)
    return ParameterLayout(
        tuple(ParameterSlot(f"{number}.weight", (side, side), number * side**2) for number in range(count))
    )


def digits_gradients(samples: int) -> tuple[ParameterLayout, list[DenseBlock]]:
    """Gradients of the margin of the digits network, after half an epoch's steps of gradient descent."""
    torch.manual_seed(0)
    model, data = DigitsCNN(), DigitsDataModule()
    data.setup("fit")
    images, labels = (torch.cat(parts) for parts in zip(*data.train_dataloader(), strict=True))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for start in range(0, 40 * 16, 16):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[start : start + 16]), labels[start : start + 16]).backward()
        optimizer.step()
    blocks: dict[str, Tensor] = {}
    layout, batch = ParameterLayout.of(model.eval()), (images[:samples], labels[:samples])
    Hooks().extract(
        model,
        ImageClassification(),
        SampleBatch.of_rows(batch, samples),
        layout,
        lambda block: blocks.update({block.name: block.dense().clone()}),
    )
    return layout, [DenseBlock(name, grad) for name, grad in blocks.items()]


def _read(batches: list[list[DenseBlock]], device: str) -> float:
    return seconds(lambda: [block.grad.sum() for blocks in batches for block in blocks], device)


def _project_all(projection: Projection, batches: list[list[DenseBlock]], B: int, device: str) -> float:
    def run() -> None:
        for blocks in batches:
            features = projection.zeros(B)
            for block in blocks:
                projection.add(block, features)

    return seconds(run, device)


def seconds(run, device: str) -> float:  # type: ignore[no-untyped-def]
    """How long `run` takes."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    auto_cli([speed, error])
