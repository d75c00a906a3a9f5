"""``trak score``: features → scores."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse import ArgumentParser

from trak_lightning.cli.arguments import light_parser, light_settings, open_run
from trak_lightning.cli.output import print_json, print_trust_or_why_not, short_path, summary, trust_in
from trak_lightning.errors import SettingsError
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.numpy_files import read_given
from trak_lightning.scoring.backend import LOCAL, Backend
from trak_lightning.scoring.score_run import score_run
from trak_lightning.scoring.views import Reduction
from trak_lightning.stores.base import FeatureStore

READS = ("run_dir", "train_split", "target_split", "store", "scorer")


def main(argv: Sequence[str]) -> int:
    """Attribute the targets to the training samples."""
    started = time.perf_counter()
    config, instances = light_settings(_parser(), argv, reads=READS, renamed={"--top": "--keep"})
    backend = _backend(config.accelerator, config.devices)
    run, store = open_run(config, instances)
    scores, fresh = score_run(
        run,
        store,
        instances.scorer,
        train=config.train_split,
        targets=config.target_split,
        top=config.keep,
        groups=_read_groups(config.groups, run, store, config.target_split),
        reduction=config.reduction,
        name=config.name,
        backend=backend,
    )
    if backend.rank == 0 and config.json:
        print_json(
            {
                "path": scores.path,
                "shape": scores.shape,
                "computed": fresh,
                **trust_in(run, scores),
                "settings": scores.settings,
            }
        )
    elif backend.rank == 0:
        summary("score", f"{scores.describe()} in {short_path(scores.path)}", fresh, "computed", started)
        print_trust_or_why_not(run, scores)
    return 0


def _parser() -> ArgumentParser:
    parser = light_parser(
        "score", "Attribute the targets to the training samples, from the features of a run.", reads=READS
    )
    parser.add_argument(
        "--keep",
        type=int | None,
        help="store only this many of the most helpful and most harmful samples of each target, and no matrix",
    )
    parser.add_argument(
        "--groups", type=str | None, help="score groups of targets: 'all', or a .npy file with one integer per target"
    )
    parser.add_argument(
        "--reduction", type=Reduction, default="mean", help="the output of a group: mean or sum of its targets' outputs"
    )
    parser.add_argument("--name", type=str | None, help="name of the score file; default: the target split")
    parser.add_argument(
        "--devices", type=int, default=1, help="number of devices that share the work, one process each"
    )
    parser.add_argument(
        "--accelerator", type=Literal["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if there is one"
    )
    return parser


def _backend(accelerator: str, devices: int) -> Backend:
    """The devices asked for; torch is imported only if there is a use for it."""
    if devices < 1:
        raise SettingsError(f"--devices must be at least 1, got {devices}")
    if accelerator == "auto":
        accelerator = "cuda" if Path("/dev/nvidiactl").exists() else "cpu"
    if accelerator == "cpu" and devices == 1:
        return LOCAL
    from lightning.fabric import Fabric

    from trak_lightning.scoring.fabric import FabricBackend

    fabric = Fabric(accelerator=accelerator, devices=devices, strategy="ddp" if devices > 1 else "auto")
    fabric.launch()
    return FabricBackend(fabric)


def _read_groups(choice: str | None, run: RunDirectory, store: FeatureStore, targets: str) -> np.ndarray | None:
    if choice is None:
        return None
    if choice == "all":
        first = run.require_checkpoints()[0]
        return np.zeros(store.open(targets, first.id).spec.num_samples, dtype=np.int64)
    return read_given(choice, "--groups must be 'all' or a .npy file with one integer per target")
