"""Commands that need no torch: score, self-influence, top."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse import ArgumentParser

from trak_lightning.cli.arguments import light_parser, open_run
from trak_lightning.cli.names import rewrite
from trak_lightning.cli.output import summary
from trak_lightning.errors import DataError, SettingsError
from trak_lightning.run.atomic import atomic_write
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.compute import LOCAL, Compute
from trak_lightning.scoring.ranking import Ranking, rank
from trak_lightning.scoring.score_run import load_features, score_run
from trak_lightning.scoring.scores import open_scores
from trak_lightning.scoring.views import Reduction
from trak_lightning.stores.base import FeatureStore


def score(argv: Sequence[str]) -> int:
    """``trak score``."""
    started = time.perf_counter()
    parser = light_parser("score", "Attribute the targets to the training samples, from the features of a run.")
    parser.add_argument(
        "--top", type=int | None, default=None, help="keep only so many of the best and worst of each target"
    )
    parser.add_argument(
        "--groups",
        type=str | None,
        default=None,
        help="score groups of targets: 'all', or a .npy file with one integer a target",
    )
    parser.add_argument(
        "--reduction", type=Reduction, default="mean", help="a group's output is the mean or the sum of its targets'"
    )
    parser.add_argument("--name", type=str | None, default=None, help="of the score file; default: the target split")
    parser.add_argument("--devices", type=int, default=1, help="how many share the work, one process each")
    parser.add_argument(
        "--accelerator", type=Literal["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if there is one"
    )
    config = parser.parse_args(rewrite(argv, reads=("store", "scorer")))
    compute = _compute(config.accelerator, config.devices)
    instances = parser.instantiate(config)
    run, store = open_run(config, instances)
    scores, fresh = score_run(
        run,
        store,
        instances.scorer,
        train=config.train_split,
        targets=config.target_split,
        top=config.top,
        groups=_read_groups(config.groups, run, store, config.target_split),
        reduction=config.reduction,
        name=config.name,
        compute=compute,
    )
    if compute.rank == 0:
        summary("score", f"{scores.describe()} in {scores.path}", int(fresh), "computed", started)
    return 0


def _compute(accelerator: str, devices: int) -> Compute:
    """What was asked for; torch is imported only if there is a use for it."""
    if devices < 1:
        raise SettingsError(f"--devices must be at least 1, got {devices}")
    if accelerator == "auto":
        accelerator = "cuda" if Path("/dev/nvidiactl").exists() else "cpu"
    if accelerator == "cpu" and devices == 1:
        return LOCAL
    from lightning.fabric import Fabric

    from trak_lightning.scoring.fabric import FabricCompute

    fabric = Fabric(accelerator=accelerator, devices=devices, strategy="ddp" if devices > 1 else "auto")
    fabric.launch()
    return FabricCompute(fabric)


def self_influence(argv: Sequence[str]) -> int:
    """``trak self-influence``."""
    from trak_lightning.scoring.self_influence import self_influence as compute

    started = time.perf_counter()
    parser = light_parser(
        "self-influence",
        "What training samples do to themselves: self-influence (large for mislabelled and rare samples) and leverage, "
        "written to RUN_DIR/scores/self_influence.npz.",
    )
    config = parser.parse_args(rewrite(argv, reads=("store", "scorer")))
    instances = parser.instantiate(config)
    run, store = open_run(config, instances)
    checkpoints = load_features(run, store, targets=config.train_split, train=config.train_split)
    settings = instances.scorer.state
    found = compute(checkpoints, settings.get("regularization", "auto"), settings.get("weights", "auto"))
    path = run.path / "scores" / "self_influence.npz"
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez(file, **found._asdict())
    largest = ", ".join(str(i) for i in np.argsort(-found.self_influence, kind="stable")[:10])
    summary("self", f"{path}; largest self-influence: {largest}", len(found.leverage), "samples", started)
    return 0


def top(argv: Sequence[str]) -> int:
    """``trak top``."""
    from rich.console import Console
    from rich.table import Table

    parser = ArgumentParser(prog="trak top", description="The most helpful and harmful training samples of a target.")
    parser.add_argument("run_dir", type=str, help="a run directory with scores")
    parser.add_argument("--target", type=int | None, default=None, help="position of the target in its dataset")
    parser.add_argument(
        "--train",
        type=int | None,
        default=None,
        help="instead: the targets that this training sample helps and harms most",
    )
    parser.add_argument("-k", type=int, default=10, help="how many of each")
    parser.add_argument("--name", type=str | None, default=None, help="score file; default: the only one")
    config = parser.parse_args(list(argv))
    scores = open_scores(RunDirectory(config.run_dir), config.name)
    if (config.target is None) == (config.train is None):
        raise DataError("give either --target or --train, the position of one sample")
    m, n = scores.shape
    size, others = (n, "training samples") if config.train is None else (m, "targets")
    if config.target is not None and not 0 <= config.target < m:
        raise DataError(f"--target {config.target} is out of range: {scores.path} has targets 0 … {m - 1}")
    if not 1 <= config.k <= size:
        raise DataError(f"-k {config.k} is out of range: there are {size} {others}")
    if config.train is None:
        helpful, harmful = scores.top(config.k, target=config.target), scores.bottom(config.k, target=config.target)
        title, what = f"Target {config.target}", "train"
    else:
        effects = scores.effects(config.train)[None]
        found = (rank(effects, which, config.k) for which in ("top", "bottom"))
        helpful, harmful = (Ranking(ranking.indices[0], ranking.values[0]) for ranking in found)
        title, what = f"Training sample {config.train}", "target"
    table = Table(title=f"{title} of {scores.path}", title_justify="left")
    for heading in ("rank", f"helpful: {what} index", "score", f"harmful: {what} index", "score"):
        table.add_column(heading, justify="right", no_wrap=heading == "score")
    for place in range(config.k):
        table.add_row(str(place + 1), *_entry(helpful, place), *_entry(harmful, place))
    Console().print(table)
    return 0


def _entry(ranking: Ranking, place: int) -> tuple[str, str]:
    value = f"{ranking.values[place]:+.4g}"
    if ranking.spread is not None and np.isfinite(ranking.spread[place]):
        value += f" ± {ranking.spread[place]:.2g}"
    return str(ranking.indices[place]), value


def _read_groups(choice: str | None, run: RunDirectory, store: FeatureStore, targets: str) -> np.ndarray | None:
    if choice is None:
        return None
    if choice == "all":
        first = run.require_checkpoints()[0]
        return np.zeros(store.open(targets, first.id).spec.num_samples, dtype=np.int64)
    try:
        found: np.ndarray = np.load(choice, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"--groups must be 'all' or a .npy file with one integer a target; {choice}: {error}"
        ) from error
    return found
