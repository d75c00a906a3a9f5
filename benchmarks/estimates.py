"""How near what `trak check` estimates is to what then happens: seconds, peak resident memory, bytes on disk.

``python benchmarks/estimates.py train`` makes the checkpoints of every configuration, of two steps each: what is measured here does
not depend on what a model has learned. ``python benchmarks/estimates.py`` then runs ``trak check`` and the stages featurize and score of ``trak run``, each in a process of its own. What is timed begins when the
process has started and its data is set up, as the estimate does.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

CONFIGS = [f"configs/{name}.yaml" for name in ("digits", "glosses", "emoji", "countries")]
FOLDER = Path("runs/estimates")
UNITS = {"s": 1, "min": 60, "h": 3600, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def train(configs: list[str] = CONFIGS, folder: Path = FOLDER) -> None:
    """Make the checkpoints that are missing.

    Args:
        configs: files.
        folder: for a run directory of each.
    """
    for config in configs:
        briefly = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
        subprocess.run(_trak("train", config, folder) + briefly, check=True)


def compare(configs: list[str] = CONFIGS, folder: Path = FOLDER) -> None:
    """Print the estimates, what happened, and their ratio.

    Args:
        configs: files.
        folder: for a run directory of each.
    """
    table = Table(title="estimated / happened = ratio", title_justify="left")
    for column in ("configuration", "time", "peak memory", "disk", "check itself"):
        table.add_column(column, justify="right")
    for config in configs:
        run = _run_dir(config, folder)
        for made in ("features", "factors", "scores"):
            shutil.rmtree(run / made, ignore_errors=True)
        started = time.perf_counter()
        said = subprocess.run(_trak("check", config, folder), check=True, capture_output=True, text=True).stdout
        checked = time.perf_counter() - started
        estimated = [_said(said, topic) for topic in ("time", "memory", "disk")]
        child = [sys.executable, __file__, "happen", config, str(run)]
        happened = json.loads(
            subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )
        cells = [f"{estimated[0]:.2g} / {happened[0]:.1f} s = {estimated[0] / happened[0]:.2f}"]
        for guess, truth in zip(estimated[1:], happened[1:], strict=True):
            cells.append(f"{guess / 1e6:.0f} / {truth / 1e6:.0f} MB = {guess / truth:.2f}")
        table.add_row(Path(config).stem, *cells, f"{checked:.1f} s")
    Console(width=140).print(table)


def happen(config: str, run: Path) -> None:
    """The stages themselves; prints seconds, peak resident bytes, and bytes on disk."""
    from trak_lightning.check.trial import resident_bytes
    from trak_lightning.cli.job import Job

    job = Job("run", ["--config", config, "--run_dir", str(run)])
    started = time.perf_counter()
    job.featurize(job.checkpoints())
    job.score()
    seconds = time.perf_counter() - started
    made = [path for part in ("features", "factors", "scores") for path in (run / part).rglob("*")]
    print(json.dumps([seconds, resident_bytes()[1], sum(path.stat().st_size for path in made if path.is_file())]))


def _trak(command: str, config: str, folder: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "trak_lightning",
        command,
        "--config",
        config,
        "--run_dir",
        str(_run_dir(config, folder)),
    ]


def _run_dir(config: str, folder: Path) -> Path:
    return folder / Path(config).stem


def _said(output: str, topic: str) -> float:
    found = re.search(rf"^{topic} +(?:about )?([\d.e+]+) (\w+)", output, re.MULTILINE)
    assert found is not None, output
    return float(found[1]) * UNITS[found[2]]


if __name__ == "__main__":
    if sys.argv[1:2] == ["happen"]:
        happen(sys.argv[2], Path(sys.argv[3]))
    else:
        auto_cli([train, compare], args=sys.argv[1:] or ["compare"])
