"""``trak whatif``: how the outputs of targets would change if some training samples had not been there."""

import json
import re
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from trak_lightning.chat.records import answers_file
from trak_lightning.cli.arguments import add_scored, light_parser, light_settings, open_run, scored_split
from trak_lightning.cli.columns import WRITTEN, Condition, all_hold
from trak_lightning.cli.error_messages import UsageError
from trak_lightning.cli.output import print_json, print_trust, summary
from trak_lightning.cli.train_values import labels_of, values_of
from trak_lightning.decisions.what_if import Removal, WhatIf
from trak_lightning.errors import DataError
from trak_lightning.run.atomic import require_writable
from trak_lightning.run.formatting import format_number, format_with_error
from trak_lightning.run.numpy_files import read_given, write_npz
from trak_lightning.scoring.base import Array
from trak_lightning.scoring.display import after_question, excerpt, print_table, shortened
from trak_lightning.scoring.regularization import settings_of
from trak_lightning.scoring.score_run import load_features
from trak_lightning.scoring.scores import open_scores

READS = ("run_dir", "train_split", "target_split", "store", "scorer")


def main(argv: Sequence[str]) -> int:
    """Print the targets that lose and gain most, and whether the set is too large to be trusted."""
    started = time.perf_counter()
    if sum(each.replace("-", "_").partition("=")[0] == "__remove_where" for each in argv) > 1:
        raise UsageError("--remove_where is given twice; join conditions in one: 'age>60 and sex=female'")
    config, instances = light_settings(_parser(), argv, reads=READS)
    run, store = open_run(config, instances)
    path = run.path / "what_if.npz"
    require_writable(path)
    samples = _samples(config)
    targets = scored_split(config, run)
    checkpoints = load_features(run, store, targets=targets, train=config.train_split)
    removal = WhatIf(checkpoints, *settings_of(instances.scorer)).remove(samples)
    names = ("samples", "change", "spread", "summed", "outputs", "leverage")
    write_npz(path, {name: getattr(removal, name) for name in names})
    if config.json:
        print_json({"path": path, **removal.to_json()})
        return 0
    _print(removal, config.k, targets, run.read().meaning.output, _answers(run.path, targets))
    summary(
        "whatif",
        f"without {len(removal.samples)} of {removal.num_train} samples",
        len(removal.change),
        "targets",
        started,
    )
    summary("trust", removal.trust)
    if run.scores(targets).exists():
        print_trust(run, open_scores(run, targets), "scores")
    return 0


def _parser() -> ArgumentParser:
    parser = light_parser(
        "whatif",
        "How would the outputs of the targets change if a set of training samples had not been there? By one Newton step for "
        "the whole set, without retraining. Writes RUN_DIR/what_if.npz.",
        reads=READS,
        usage="RUN_DIR (--remove I | --remove_label L | --remove_where C)\n                   [options]",
    )
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
    return parser


def _samples(config: Namespace) -> Array:
    given = [name for name in ("remove", "remove_label", "remove_where") if config[name] is not None]
    if len(given) != 1:
        raise UsageError("give one of --remove, --remove_label and --remove_where: the samples to do without")
    if config.remove is not None:
        return _read(config.remove)
    if config.remove_where is None:
        labels, names = labels_of("whatif", config.run_dir)
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
    conditions = Condition.parse_all(config.remove_where)
    return all_hold(conditions, values_of("whatif", config.run_dir, [each.column for each in conditions]))


def _read(source: str) -> Array:
    if re.fullmatch(r"\[?[\d\s,-]+\]?", source):
        return np.array([int(each) for each in re.findall(r"-?\d+", source)])
    return read_given(source, "--remove must be positions such as 3,17 or a .npy file of positions or of a mask")


def _answers(run: Path, targets: str) -> list[str]:
    """The answers that are the targets of ``trak sft``, each after its question, shortened; none for other targets."""
    path = run / answers_file(targets)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    texts = [shortened(excerpt(row["answer"], row.get("span")), 20) for row in rows]
    return [after_question(row.get("question", ""), text, 20) for row, text in zip(rows, texts, strict=True)]


def _print(removal: Removal, count: int, targets: str, f: str, answers: Sequence[str] = ()) -> None:
    title = f"How f would change without the samples, for each target of {targets}; f: {f}"
    order = removal.order()
    loses, gains = (
        [int(each) for each in side[:count]]
        for side in (order[removal.change[order] < 0], order[removal.change[order] > 0][::-1])
    )
    rows = [
        (*_entry(removal, low, answers), *_entry(removal, high, answers)) for low, high in zip_longest(loses, gains)
    ]
    headings = ("f falls for", "f now", "change", "f rises for", "f now", "change")
    print_table(headings, rows, numeric=(1, 2, 4, 5) if answers else range(6), title=title)


def _entry(removal: Removal, target: int | None, answers: Sequence[str]) -> tuple[str, str, str]:
    if target is None:
        return "", "", ""
    change = format_with_error(removal.change[target], removal.spread[target])
    return f"{target} {answers[target]}" if answers else str(target), format_number(removal.outputs[target]), change
