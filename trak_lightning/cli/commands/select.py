"""``trak select``: which training samples to keep for the targets, given a budget."""

import time
from collections.abc import Sequence

import numpy as np
from jsonargparse import Namespace

from trak_lightning.cli.arguments import NAMES_TARGETS, add_scored, light_parser, light_settings, open_run, scored_split
from trak_lightning.cli.output import print_json, short_path, summary
from trak_lightning.cli.shown_samples import shown_train
from trak_lightning.cli.store_arguments import add_numbers
from trak_lightning.cli.train_values import columns_of_train, labels_of
from trak_lightning.decisions.select import Selection, select_samples
from trak_lightning.run.atomic import require_writable
from trak_lightning.run.numpy_files import read_given
from trak_lightning.scoring.base import Array
from trak_lightning.scoring.display import ShowsLines, print_table, print_to_read, sample_columns
from trak_lightning.scoring.regularization import settings_of
from trak_lightning.scoring.score_run import load_features

READS = ("run_dir", "train_split", "target_split", "store", "scorer")


def main(argv: Sequence[str]) -> int:
    """Choose the samples, print the first, and write all."""
    started = time.perf_counter()
    parser = light_parser(
        "select",
        "Which training samples are worth keeping for the targets? Chosen one by one, each given those before it, so that "
        "samples that are alike are not chosen twice. Writes RUN_DIR/selection/indices.npy, weights.npy (for the losses of these "
        "samples, if the task has classes), selection.csv and selection.json, most useful samples first.",
        reads=READS,
        usage="RUN_DIR --budget N [options]",
    )
    parser.add_argument(
        "--budget",
        type=int | float,
        required=True,
        help="number of samples, or a share of the training set: 1 is one sample, and 1.0 all",
    )
    parser.add_argument(
        "--groups",
        type=str | None,
        help="each group keeps its share of the training set: label, a column of the samples such as source or numeric[0], or "
        "a .npy file with one group per sample",
    )
    add_scored(parser)
    parser.add_argument("-k", type=int, default=10, help="number of samples to print")
    add_numbers(parser)
    config, instances = light_settings(parser, argv, reads=READS, one_of=NAMES_TARGETS)
    run, store = open_run(config, instances)
    folder = run.path / "selection"
    require_writable(folder)
    checkpoints = load_features(run, store, targets=scored_split(config, run), train=config.train_split)
    groups = None if config.groups is None else _groups(config, config.groups)
    regularization, _ = settings_of(instances.scorer)
    found = select_samples(checkpoints, run.read().meaning, config.budget, groups=groups, regularization=regularization)
    found.write(folder)
    if config.json:
        print_json({"path": folder, **found.to_json()})
        return 0
    samples = (
        None
        if config.numbers
        else shown_train("select", run, found.indices[: config.k], found.num_train, config.train_split)
    )
    summary("select", f"{found.describe()}; {short_path(folder)}", len(found), "samples", started)
    _print(found, samples, config.k)
    return 0


def _groups(config: Namespace, source: str) -> Array:
    if source == "label":
        labels, names = labels_of("select", config.run_dir, config.train_split)
        return np.array(names)[labels]
    if not source.endswith(".npy"):
        return columns_of_train("select", config.run_dir, config.train_split).values(source)
    return read_given(source, "--groups must be label, a column, or a .npy file of groups")


def _print(found: Selection, samples: ShowsLines | None, count: int) -> None:
    share = np.cumsum(found.gain) / found.gain.sum()
    first = found.indices[:count]
    columns = {
        "index": [str(index) for index in first],
        "gain so far": [f"{100 * part:.0f} %" for part in share[:count]],
    }
    if found.groups is not None:
        columns["group"] = [str(found.groups[index]) for index in first]
    columns |= sample_columns(first, samples)
    print("Chosen first")
    print_table(tuple(columns), zip(*columns.values(), strict=True), numeric=(0, 1))
    print_to_read(first, samples)
