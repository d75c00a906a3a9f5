"""``trak verify``: is every stored row and score present and intact?"""

import time
from collections.abc import Sequence
from pathlib import Path

from trak_lightning.cli.command_line import CommandLine
from trak_lightning.cli.output import print_json, short_path, summary
from trak_lightning.cli.store_arguments import opened, stored_parser
from trak_lightning.errors import TrakError
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.formatting import counted, format_ranges
from trak_lightning.scoring.scores import Scores
from trak_lightning.stores.base import FeatureSet, FeatureStore


def main(argv: Sequence[str]) -> int:
    """Check, and print each fault; exit status 1 if there is one."""
    started = time.perf_counter()
    parser = stored_parser("verify", "Check that every stored row and score is present and is what was written.")
    config = CommandLine.of(argv, parser).parse()
    run, store = opened(config)
    sets = store.list()
    rows, faults = _verify_features(store, sets)
    score_files = run.score_files
    if not sets and not score_files:  # scores of a recorded training need no features
        faults.append(f"there are no features in {store.elsewhere or run.features}, and no scores")
    faults += _verify_files(run, score_files)
    if config.json:
        print_json({"rows": rows, "feature_sets": len(sets), "score_files": len(score_files), "faults": faults})
        return 1 if faults else 0
    for fault in faults:
        print(fault)
    result = counted(len(faults), "fault") if faults else "all present and as written"
    checked = [f"{rows} rows of {counted(len(sets), 'feature set')}"] if sets else []
    checked += [counted(len(score_files), "score file")] if score_files else []
    what = " and ".join(checked) or "nothing"
    summary(
        "verify", f"{what} in {short_path(run.path)}: {result}", rows or len(score_files) or None, "checked", started
    )
    return 1 if faults else 0


def _verify_features(store: FeatureStore, sets: Sequence[tuple[str, str]]) -> tuple[int, list[str]]:
    rows, faults = 0, []
    for split, checkpoint in sets:
        try:
            checked, wrong = _verify_set(store.open(split, checkpoint))
        except TrakError as error:
            faults.append(str(error))
        else:
            rows += checked
            faults += wrong
    return rows, faults


def _verify_set(found: FeatureSet) -> tuple[int, list[str]]:
    spec, missing = found.spec, found.missing_blocks()
    faults = found.strays()
    if missing:
        rows = format_ranges(map(spec.block_range, missing))
        faults.append(f"{spec.split}/{spec.checkpoint}: samples {rows} are missing. Run trak featurize again.")
    checked = 0
    for block in sorted(set(range(spec.num_blocks)) - set(missing)):
        try:
            found.verify_block(block)
            checked += len(spec.block_range(block))
        except TrakError as error:
            faults.append(str(error))
    return checked, faults


def _verify_files(run: RunDirectory, score_files: Sequence[Path]) -> list[str]:
    """The faults of training subsets and score files."""
    checks = [lambda record=record: run.read_subset(record.id) for record in run.read().checkpoints]
    checks += [lambda path=path: Scores(path).verify() for path in score_files]
    faults = []
    for check in checks:
        try:
            check()
        except TrakError as error:
            faults.append(str(error))
    return faults
