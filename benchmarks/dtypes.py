"""Measure the effect of storing features in fewer bits: on the LDS, and on scores compared with those of float32.

    trak run --config configs/digits.yaml
    python benchmarks/dtypes.py runs/digits

The features of a finished run are copied to stores of other types in a temporary folder and scored with the run's own settings.
All are evaluated with the models that the run has retrained.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import yaml
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from trak_lightning.evaluation.lds import bootstrap_mean, predict, spearman
from trak_lightning.evaluation.lds_run import models_folder
from trak_lightning.retraining.outputs import read_outputs
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.score_run import score_run
from trak_lightning.scoring.trak import Trak
from trak_lightning.stores.configured import open_store
from trak_lightning.stores.merge import merge


def main(
    run_dir: str,
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16", "int8"),
    models: int = 100,
    fraction: float = 0.5,
    folder: str | None = None,
) -> None:
    """Print the table.

    Args:
        run_dir: a finished run with retrained models.
        dtypes: types of the stores; the others are compared with the first one.
        models: number of retrained models.
        fraction: the fraction of the training set that they were trained on.
        folder: where features are copied to temporarily; the system's temporary folder if None.
    """
    run = RunDirectory(run_dir)
    settings = yaml.safe_load(run.config.read_text())["scorer"]["init_args"]
    place = Path(tempfile.mkdtemp(prefix="trak-dtypes-", dir=folder))
    table = Table(title=f"{run.path.name}, {models} retrained models, Trak({settings})")
    for column in ("dtype", "LDS", "95 % interval", "difference", "rank correlation", "MB", "LDS, λ = 0, unweighted"):
        table.add_column(column, justify="left" if column == "dtype" else "right")
    first = None
    try:
        for dtype in dtypes:
            copy = RunDirectory(place / dtype)
            merge([run.path], copy.path, to={"name": "hdf5", "dtype": dtype})
            store = open_store(copy)
            sets = [store.open(*key) for key in store.list()]
            subsets, outputs = read_outputs(
                models_folder(run, fraction),
                models,
                num_samples=max(found.spec.num_samples for found in sets),
                num_targets=min(found.spec.num_samples for found in sets),
            )
            paper, _ = score_run(copy, store, Trak(regularization=0.0, weights="none"), targets="test", name="paper")
            scores = score_run(copy, store, Trak(**settings), targets="test")[0].values
            lds, low, high = bootstrap_mean(spearman(predict([scores], subsets), outputs), seed=0)
            of_paper = bootstrap_mean(spearman(predict([paper.values], subsets), outputs), seed=0)[0]
            first = np.array(scores) if first is None else first
            table.add_row(
                dtype,
                f"{lds:.4f}",
                f"{low:.3f} … {high:.3f}",
                f"{100 * np.linalg.norm(scores - first) / np.linalg.norm(first):.3g} %",
                f"{spearman(scores.T, first.T).mean():.4f}",
                f"{sum(found.nbytes() for found in sets) / 1e6:.1f}",
                f"{of_paper:.4f}",
            )
            Console(width=140).print(table)
            shutil.rmtree(copy.path)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    auto_cli(main)
