"""How well do scores predict models retrained on other halves of the training set? Three problems, many methods.

    python benchmarks/lds.py --fashion /usr/share/datasets/fashion-mnist
    python benchmarks/lds.py --problems [digits] --checkpoints 5 --dims [512,2048]
    python benchmarks/lds.py --peers '{traker: peers/traker/bin/python}'

Trains what is missing in `folder` (ten checkpoints on random halves, a hundred models on others, a few minutes a problem),
scores with every method, and prints the linear datamodeling score with its 95 % bootstrap interval over targets, and the
seconds that features and scores took together. A peer runs in an environment of its own, on the same checkpoints:

    python -m venv peers/traker && peers/traker/bin/pip install torch==2.13.0 -e . traker
"""

import json
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli
from problems import PROBLEMS, Trained, prepare
from problems.fashion import ROOT, FashionData
from rich.console import Console
from rich.table import Table

from trak_lightning import TRAK
from trak_lightning.evaluation.lds import bootstrap_mean, lds
from trak_lightning.evaluation.outputs import read_outputs

METHODS: dict[str, dict[str, Any]] = {
    "trak (default)": {"name": "trak"},
    "trak, subsets not recorded": {"name": "trak"},
    "trak, calibrated": {"name": "trak", "regularization": "calibrate"},
    "trak as in the paper: W = I, λ = 0": {"name": "trak", "regularization": 0.0, "weights": "none"},
    "leave_one_out": {"name": "leave_one_out"},
    "influence": {"name": "influence"},
    "gradient_dot": {"name": "gradient_dot"},
    "gradient_cosine": {"name": "gradient_cosine"},
    "tracin": {"name": "tracin"},
}


def main(
    problems: list[str] = ["digits", "fashion", "glosses"],  # noqa: B006
    folder: Path = Path("runs/lds"),
    dims: list[int] = [512, 2048],  # noqa: B006
    checkpoints: int = 5,
    models: int = 100,
    fashion: Path = ROOT,
    peers: dict[str, str] = {},  # noqa: B006
    output: Path | None = None,
) -> None:
    """Print the table.

    Args:
        problems: names of problems.
        folder: where models, features and scores are kept.
        dims: k of the projection; 0 for no projection, where memory and disk allow it.
        checkpoints: how many to attribute with.
        models: how many retrained models to judge by.
        fashion: folder with the four files of Fashion-MNIST.
        peers: other libraries: name → python of an environment that has it.
        output: a JSON file for the rows.
    """
    PROBLEMS["fashion"] = PROBLEMS["fashion"].with_data(partial(FashionData, root=fashion))
    rows = []
    for name in problems:
        trained = prepare(name, folder / name, ensemble=max(10, checkpoints), models=models)
        subsets, outputs = read_outputs(
            trained.models, models, num_samples=len(trained.train), num_targets=len(trained.targets)
        )
        for method, k, scores, seconds in _scored(trained, name, folder, dims, checkpoints, fashion, peers):
            found = bootstrap_mean(lds([scores], subsets, outputs), seed=0)
            rows.append({"problem": name, "method": method, "k": k, "lds": found, "seconds": seconds})
            print(
                f"{name:8} {method:36} k = {k or 'p':5} LDS {found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}] {seconds:.0f} s"
            )
    table = Table(title=f"Linear datamodeling score, {checkpoints} checkpoints, {models} retrained models")
    for column in ("problem", "method", "k", "LDS", "95 % interval", "time"):
        table.add_column(column)
    for row in rows:
        mean, low, high = row["lds"]
        interval = f"{low:.3f} … {high:.3f}"
        table.add_row(
            row["problem"], row["method"], str(row["k"] or "p"), f"{mean:.3f}", interval, f"{row['seconds']:.0f} s"
        )
    Console(width=120).print(table)
    if output is not None:
        output.write_text(json.dumps(rows, indent=1))


def _scored(
    trained: Trained,
    problem: str,
    folder: Path,
    dims: list[int],
    M: int,
    fashion: Path,
    peers: dict[str, str],
) -> Iterator[tuple[str, int, np.ndarray, float]]:
    """Method, k, scores (m, n) and seconds."""
    for k in dims:
        for recorded in (True, False):
            # Without the files beside the checkpoints nothing is known of their subsets.
            sources: list[Any] = trained.checkpoints[:M]
            if not recorded:
                sources = [_weights(path) for path in sources]
            run = folder / problem / f"ours-{k}-{M}-{'recorded' if recorded else 'unrecorded'}"
            projector = {"name": "sparse_jl", "dim": k} if k else "identity"
            trak = TRAK(trained.model, "image_classification", run, projector=projector)
            started = time.perf_counter()
            trak.featurize(trained.train, sources)
            trak.featurize_split(trained.targets, "test")
            featurized = time.perf_counter() - started
            for method, scorer in METHODS.items():
                if recorded == (method != "trak, subsets not recorded"):
                    started = time.perf_counter()
                    scores = trak.score(trained.targets, "test", scorer=scorer).values
                    yield method, k, np.array(scores), featurized + time.perf_counter() - started
        for peer, python in peers.items():
            target = folder / problem / f"{peer}-{k}-{M}.npy"
            script = Path(__file__).parent / "peers" / f"{peer}.py"
            names = [str(path) for path in trained.checkpoints[:M]]
            started = time.perf_counter()
            command = [python, str(script), problem, str(fashion), str(k), str(target), *names]
            if subprocess.run(command, check=False).returncode == 0:
                yield peer, k, np.load(target), time.perf_counter() - started
            else:
                print(f"{problem} {peer} k = {k}: failed")


def _weights(path: Path) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


if __name__ == "__main__":
    auto_cli(main)
