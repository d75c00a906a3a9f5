"""``trak suspects``: training samples whose label is likely wrong."""

import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trak_lightning.cli.command_line import CommandLine
from trak_lightning.cli.error_messages import UsageError
from trak_lightning.cli.output import print_json, short_path, summary
from trak_lightning.cli.shown_samples import all_train
from trak_lightning.cli.store_arguments import add_json, run_parser
from trak_lightning.decisions.suspects import Suspects
from trak_lightning.run.atomic import atomic_write, require_writable
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.formatting import format_significant
from trak_lightning.run.numpy_files import write_npy
from trak_lightning.scoring.display import print_table, print_to_read

_PERCENT = re.compile(r"(?:([<>]) )?(\d+) %")
"""Numbers that a table must not break at their spaces, which it also does at those that do not break."""


def main(argv: Sequence[str]) -> int:
    """Rank the training samples, print the first, and store the ranking and the positions before the cut."""
    started = time.perf_counter()
    parser = run_parser(
        "suspects",
        "Training samples whose label is likely wrong, from the predictions of checkpoints that were not trained on them. "
        "RUN_DIR/suspects/suspects.csv, suspects.json and indices.npy have those before the cut, and ranking.csv all samples; if nothing is before the cut, the tables have all (the column wrong is empty where nothing is before the cut, or all models were trained on the sample). A task "
        "without classes is ranked by its error, without a cut: suspects.csv and suspects.json have all samples, and there is no indices.npy.",
        of="a featurized run directory",
    )
    parser.add_argument(
        "--fdr", type=float, default=0.1, help="largest expected share of false alarms among the samples before the cut"
    )
    parser.add_argument("-k", type=int, default=20, help="number of samples to print")
    add_json(parser)
    line = CommandLine.of(argv, parser)
    options = line.parse()
    if options.k < 1:
        raise UsageError(f"-k, the number of samples to print, must be at least 1, got {options.k}")
    run = RunDirectory(options.run_dir)
    run.require_checkpoints()
    run.require_config("suspects() of its TRAK object")
    folder = run.path / "suspects"
    require_writable(folder)

    from trak_lightning.cli.job import Job

    job = Job("suspects", [str(run.path)])
    found = job.suspects(options.fdr)
    found = replace(found, samples=all_train(job))
    write(found, folder)
    if line.value("--fdr") is not None and not found.has_cut:
        print("trak: --fdr has no effect: the task has no classes, and its ranking no cut", file=sys.stderr)
    if options.json:
        print_json({"path": folder, **found.to_json(max(options.k, len(found)))})
    else:
        where = f"ranking in {short_path(folder / ('ranking.csv' if found.has_cut else 'suspects.csv'))}"
        summary("suspects", f"{found.describe()}; {where}", len(found.ranking), "samples", started)
        _print(found, options.k)  # after the line that says whether any is suspicious
    return 0


def write(found: Suspects, folder: Path) -> None:
    """Write the table, the same as JSON and, if there is a cut, the positions before it and the whole ranking."""
    found.to_csv(folder / "suspects.csv")
    with atomic_write(folder / "suspects.json") as part:
        part.write_text(json.dumps(found.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")
    indices = folder / "indices.npy"
    ranking = folder / "ranking.csv"
    if found.has_cut:
        found.to_csv(ranking, whole=True)
        write_npy(indices, found.indices)
    else:
        indices.unlink(missing_ok=True)
        ranking.unlink(missing_ok=True)


def _print(found: Suspects, count: int) -> None:
    def written(value: str | None) -> str | None:
        return value if value is None or found.numbers is None else format_significant(value)

    shown = found.first(count)
    columns: dict[str, list[str | None]] = {
        "index": [str(each.index) for each in shown],
        "label": [written(each.label) for each in shown],
        "models say": [written(each.says) for each in shown],
        "wrong": [None if each.wrong is None else f"{each.wrong:.0%}" for each in shown],
        "error": [None if each.error is None else format_significant(each.error) for each in shown],
        "why": [_PERCENT.sub(r"\1\2%", each.why) or None for each in shown],
        "sample": [each.text for each in shown],
    }
    known = {heading: cells for heading, cells in columns.items() if any(cell is not None for cell in cells)}
    numeric = [
        place
        for place, heading in enumerate(known)
        if heading in ("index", "wrong", "error") or (heading not in ("why", "sample") and not found.has_cut)
    ]
    rows = [tuple(cell or "" for cell in row) for row in zip(*known.values(), strict=True)]
    if 0 < len(found) < len(rows):
        cut = "── cut" if found.expected is None else f"── cut: above, {found.false_alarms}; below, more"
        rows.insert(len(found), tuple(cut if heading == "why" else "" for heading in known))
    if found.has_cut and not len(found) and shown:
        print("Most suspicious, none of them before the cut")
    print_table(tuple(known), rows, numeric=numeric)
    print_to_read([each.index for each in shown], found.samples)
    listed, which = (len(found), " before the cut") if found.has_cut else (len(found.ranking), "")
    if len(shown) < listed:
        print(f"The first {len(shown)} of {listed}{which}; -k {listed} prints them, and suspects.csv has them.")
