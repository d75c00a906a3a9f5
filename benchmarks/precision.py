"""What lower precision costs: features under every ``--trainer.precision`` against those of float64."""

import tempfile
import warnings

import lightning as L
import numpy as np
import torch
from jsonargparse import auto_cli
from models import WORKLOADS, Margin
from rich.console import Console
from rich.table import Table
from torch.utils.data import TensorDataset

from trak_lightning import TRAK
from trak_lightning.errors import TrakError
from trak_lightning.stores.memory import MemoryStore

PRECISIONS = ["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"]


def main(
    models: list[str] = ["resnet9", "vit-tiny", "bert-6x384"],  # noqa: B006
    precisions: list[str] = PRECISIONS,
    samples: int = 16,
    dim: int = 2048,
    accelerator: str = "cpu",
) -> None:
    """Print the table.

    Args:
        models: names in benchmarks/models.py, with weights as they are initialized.
        precisions: of Lightning's Trainer.
        samples: how many.
        dim: k, the number of projected dimensions.
        accelerator: cpu or gpu.
    """
    warnings.filterwarnings("ignore")
    table = Table(
        title=f"features against float64: {samples} samples, k = {dim}, {accelerator}, torch {torch.__version__}"
    )
    for column in ("model", "precision", "median ‖φ − φ₆₄‖ / ‖φ₆₄‖", "largest", "inner products", "ran as"):
        table.add_column(column, justify="left" if column in ("model", "precision", "ran as") else "right")
    for name in models:
        torch.manual_seed(0)
        exact, _ = _features(name, "64-true", samples, dim, accelerator)
        for precision in precisions:
            try:
                found, ran_as = _features(name, precision, samples, dim, accelerator)
            except TrakError as error:
                table.add_row(name, precision, type(error).__name__, "", "", str(error)[:60])
                continue
            errors = np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)
            products, expected = found @ found.T, exact @ exact.T
            difference = np.linalg.norm(products - expected) / np.linalg.norm(expected)
            cells = (f"{np.median(errors):.1e}", f"{errors.max():.1e}", f"{difference:.1e}")
            table.add_row(name, precision, *cells, "" if ran_as == precision else ran_as)
        table.add_section()
    Console(width=140).print(table)


def _features(name: str, precision: str, samples: int, dim: int, accelerator: str) -> tuple[np.ndarray, str]:
    torch.manual_seed(0)
    workload = WORKLOADS[name]
    model = workload.model().eval()
    inputs, labels = workload.batch(samples)
    keys = list(inputs)

    class Task(Margin):
        def output(self, model, batch):  # type: ignore[no-untyped-def]
            return super().output(model, (dict(zip(keys, batch, strict=False)), batch[-1]))

    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(accelerator=accelerator, devices=1, precision=precision, **quiet)
    with tempfile.TemporaryDirectory() as folder:
        projector = {"name": "sparse_jl", "dim": dim}
        trak = TRAK(model, Task(), folder, projector=projector, store=MemoryStore(), trainer=trainer)
        trak.featurize(TensorDataset(*inputs.values(), labels), batch_size=8)
        found = trak.store.open(*trak.store.list()[0])
        features = np.concatenate([block.features for block in found.blocks()]).astype(np.float64)
    return features, trainer.precision


if __name__ == "__main__":
    auto_cli(main)
