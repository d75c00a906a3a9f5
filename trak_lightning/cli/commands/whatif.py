"""``trak whatif``: how the outputs of targets would change if some training samples had not been there."""

import re
import time
from collections.abc import Sequence

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from trak_lightning.cli.arguments import NAMES_TARGETS, add_scored, light_parser, light_settings, open_run, scored_split
from trak_lightning.cli.error_messages import UsageError
from trak_lightning.cli.output import print_json, print_trust, summary, trust_in
from trak_lightning.cli.shown_samples import What, shown_samples
from trak_lightning.cli.store_arguments import add_numbers
from trak_lightning.cli.train_values import columns_of_train, labels_of
from trak_lightning.decisions.columns import WRITTEN, Condition
from trak_lightning.decisions.what_if import WhatIf
from trak_lightning.errors import DataError
from trak_lightning.run.atomic import require_writable
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.numpy_files import read_given, write_npz
from trak_lightning.scoring.base import Array
from trak_lightning.scoring.display import ShowsLines, shortened
from trak_lightning.scoring.regularization import settings_of
from trak_lightning.scoring.same_rows import since_scored
from trak_lightning.scoring.score_run import load_features
from trak_lightning.scoring.scores import open_scores

READS = ("run_dir", "train_split", "target_split", "store", "scorer")


def main(argv: Sequence[str]) -> int:
    """Print how to read the answer, what happens to all targets, and those that lose and gain most."""
    started = time.perf_counter()
    if sum(each.replace("-", "_").partition("=")[0] == "__remove_where" for each in argv) > 1:
        raise UsageError("--remove_where is given twice; join conditions in one: 'age>60 and sex=female'")
    config, instances = light_settings(_parser(), argv, reads=READS, one_of=NAMES_TARGETS)
    run, store = open_run(config, instances)
    path = run.path / "what_if.npz"
    require_writable(path)
    samples = _samples(config)
    targets = scored_split(config, run)
    checkpoints = load_features(run, store, targets=targets, train=config.train_split)
    m = checkpoints[0].targets.spec.num_samples
    if config.target is not None and not 0 <= config.target < m:
        raise DataError(
            f"target {config.target} is out of range: {run.path} has targets 0 … {m - 1} of the name {targets!r}"
        )
    what_if = WhatIf(checkpoints, *settings_of(instances.scorer), meaning=run.read().meaning)
    removal = what_if.remove(samples)
    names = ("samples", "change", "spread", "summed", "outputs", "leverage")
    write_npz(path, {name: getattr(removal, name) for name in names})
    scores = open_scores(run, targets) if run.scores(targets).exists() else None
    if scores is not None and since_scored(store, scores) is not None:  # nothing but their trust is shown here
        scores = None
    if config.json:
        one = {} if config.target is None else {"target": removal.target_to_json(config.target)}
        print_json({"path": path, **one, **removal.to_json(), **({} if scores is None else trust_in(run, scores))})
        return 0
    what = f"without {len(removal.samples)} of {removal.num_train} training samples: {_condition(config)}"
    summary("whatif", what, len(removal.change), "targets", started)
    summary("caution", removal.caution)
    summary("changes", removal.describe())
    falls, rises = removal.sides(config.k)
    wanted = [*falls, *rises] if config.target is None else [config.target]
    samples_of = None if config.numbers else _shown(run, targets, wanted, m)
    if config.target is None:
        removal.print_targets((falls, rises), samples_of)
    else:
        removal.print_target(config.target, samples_of)
    if scores is not None:
        print_trust(run, scores)
    return 0


def _parser() -> ArgumentParser:
    parser = light_parser(
        "whatif",
        "How would the outputs of the targets change if a set of training samples had not been there? By one Newton step for "
        "the whole set, without retraining. Writes RUN_DIR/what_if.npz.",
        reads=READS,
        usage="RUN_DIR (--remove I | --remove_label L | --remove_where C)\n                   [options]",
    )
    parser.add_argument("--target", type=int | None, help="position of one target: print its change only")
    parser.add_argument(
        "--remove",
        type=str | None,
        help="training samples to do without: positions such as 3,17, or a .npy file of positions or of a mask",
    )
    parser.add_argument(
        "--remove_label", type=str | None, help="all training samples of a class, by its name or number"
    )
    parser.add_argument(
        "--remove_where", type=str | None, help=f"all training samples with some value in a column: {WRITTEN}"
    )
    add_scored(parser)
    parser.add_argument("-k", type=int, default=10, help="number of targets to print on either side")
    add_numbers(parser)
    return parser


def _samples(config: Namespace) -> Array:
    given = [name for name in ("remove", "remove_label", "remove_where") if config[name] is not None]
    if len(given) != 1:
        raise UsageError("give one of --remove, --remove_label and --remove_where: the samples to do without")
    if config.remove is not None:
        return _read(config.remove)
    if config.remove_where is None:
        labels, names = labels_of("whatif", config.run_dir, config.train_split)
        wanted = config.remove_label
        mask: Array = labels.astype(str) == (str(names.index(wanted)) if wanted in names else wanted)
        if not mask.any():
            named = (
                "" if names != list(map(str, range(len(names)))) else "; class_names of the DataModule gives them names"
            )
            raise DataError(
                f"no training sample has the label {wanted!r}; the labels are {', '.join(names[:20])}{named}"
            )
        return mask
    Condition.parse_all(config.remove_where)  # refused before the data is read
    return columns_of_train("whatif", config.run_dir, config.train_split).where(config.remove_where)


def _read(source: str) -> Array:
    if re.fullmatch(r"\[?[\d\s,-]+\]?", source):
        return np.array([int(each) for each in re.findall(r"-?\d+", source)])
    return read_given(source, "--remove must be positions such as 3,17 or a .npy file of positions or of a mask")


def _condition(config: Namespace) -> str:
    """What was asked for, as it was given."""
    if config.remove_label is not None:
        return f"label {config.remove_label}"
    return shortened(config.remove if config.remove_where is None else config.remove_where)


def _shown(run: RunDirectory, targets: str, positions: Sequence[int], count: int) -> ShowsLines | None:
    wanted: dict[What, Sequence[int]] = {"target": positions}
    return shown_samples("whatif", run, wanted, {"target": count}, splits={"target": targets}).get("target")
