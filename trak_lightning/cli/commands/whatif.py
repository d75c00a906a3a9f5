"""``trak whatif``: how the outputs of targets would change if some training samples had not been there."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace

from trak_lightning.cli.arguments import light_parser, light_settings, open_run
from trak_lightning.cli.error_messages import UsageError
from trak_lightning.cli.output import print_json, summary
from trak_lightning.decisions.what_if import Removal, WhatIf
from trak_lightning.errors import DataError
from trak_lightning.run.atomic import atomic_write
from trak_lightning.scoring.base import Array
from trak_lightning.scoring.score_run import load_features

READS = ("run_dir", "train_split", "target_split", "store", "scorer")


def main(argv: Sequence[str]) -> int:
    """Print the targets that lose and gain most, and whether the set is too large to be trusted."""
    started = time.perf_counter()
    parser = light_parser(
        "whatif",
        "How would the outputs of the targets change if a set of training samples had not been there? By one Newton step for "
        "the whole set, without retraining. Writes RUN_DIR/what_if.npz.",
        reads=READS,
    )
    parser.add_argument(
        "--remove", type=str | None, default=None, help="a .npy file of positions or of a mask, or positions: '[3, 17]'"
    )
    parser.add_argument("--remove_label", type=str | None, default=None, help="a class, by name or number")
    parser.add_argument(
        "--remove_where", type=str | None, default=None, help="column=value, of samples that have columns: source=web"
    )
    parser.add_argument("-k", type=int, default=10, help="number of targets to print on either side")
    config, instances = light_settings(parser, argv, reads=READS)
    samples = _samples(config)
    run, store = open_run(config, instances)
    checkpoints = load_features(run, store, targets=config.target_split, train=config.train_split)
    settings = instances.scorer.state
    what_if = WhatIf(checkpoints, settings.get("regularization", "auto"), settings.get("weights", "auto"))
    removal = what_if.remove(samples)
    path = run.path / "what_if.npz"
    with atomic_write(path) as part, part.open("wb") as file:
        found = {
            name: getattr(removal, name) for name in ("samples", "change", "spread", "summed", "outputs", "leverage")
        }
        np.savez(file, **found)
    if config.json:
        print_json({"path": path, **removal.to_json()})
        return 0
    _print(removal, config.k)
    summary(
        "whatif",
        f"without {len(removal.samples)} of {removal.num_train} samples",
        len(removal.change),
        "targets",
        started,
    )
    summary("trust", removal.trust)
    return 0


def _samples(config: Namespace) -> Array:
    given = [name for name in ("remove", "remove_label", "remove_where") if config[name] is not None]
    if len(given) != 1:
        raise UsageError("give one of --remove, --remove_label and --remove_where: the samples to do without")
    if config.remove is not None:
        return _read(config.remove)
    from trak_lightning.cli.job import Job

    job = Job("whatif", [config.run_dir])
    dataset, task = job.train_data.dataset, job.parts.task
    if config.remove_where is not None:
        return _where(dataset, config.remove_where)
    names = [str(name) for name in getattr(job.datamodule, "class_names", ())]
    wanted = names.index(config.remove_label) if config.remove_label in names else config.remove_label
    size, found = job.train_data.batch_size, []
    for start in range(0, len(dataset), size):
        labels = task.class_labels(job.train_data.batch(range(start, min(start + size, len(dataset)))))
        if labels is None:
            raise DataError(f"task {type(task).__name__} has no classes; give the samples with --remove")
        found.append(labels.numpy())
    mask: Array = np.concatenate(found).astype(str) == str(wanted)
    if not mask.any():
        raise DataError(
            f"no training sample has the label {config.remove_label!r}; the labels are "
            f"{', '.join(names) or ', '.join(sorted(set(np.concatenate(found).astype(str)))[:20])}"
        )
    return mask


def _where(dataset: Any, condition: str) -> Array:
    """Which samples have the value in the column: (n,) bools."""
    column, equals, value = condition.partition("=")
    if not equals:
        raise UsageError(f"--remove_where must be column=value, got {condition!r}")
    sample = dataset[0]
    if not isinstance(sample, Mapping) or column not in sample:
        has = (
            ", ".join(map(str, sample))
            if isinstance(sample, Mapping)
            else f"none: a sample is a {type(sample).__name__}"
        )
        raise DataError(f"samples of {type(dataset).__name__} have no column {column!r}; their columns are {has}")
    mask = np.array([str(dataset[i][column]) == value for i in range(len(dataset))])
    if not mask.any():
        raise DataError(f"no training sample has {column} = {value!r}; sample 0 has {sample[column]!r}")
    return mask


def _read(source: str) -> Array:
    if source.lstrip().startswith("["):
        try:
            return np.array([int(each) for each in source.strip().strip("[]").split(",") if each.strip()])
        except ValueError as error:
            raise UsageError(f"--remove must be a .npy file or positions such as '[3, 17]', got {source!r}") from error
    try:
        found: Array = np.load(Path(source), allow_pickle=False)
        return found
    except (OSError, ValueError) as error:
        raise DataError(f"--remove must be a .npy file of positions or of a mask; {source}: {error}") from error


def _print(removal: Removal, count: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Outputs f of the targets, by number, without the samples", title_justify="left")
    for heading in ("loses", "f", "change", "gains", "f", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    order = removal.order()
    for low, high in zip(order[:count], order[::-1][:count], strict=True):
        table.add_row(*_entry(removal, int(low)), *_entry(removal, int(high)))
    Console().print(table)


def _entry(removal: Removal, target: int) -> tuple[str, str, str]:
    change = f"{removal.change[target]:+.2g}"
    if np.isfinite(removal.spread[target]):
        change += f" ±{removal.spread[target]:.1g}"
    return str(target), f"{removal.outputs[target]:.3g}", change
