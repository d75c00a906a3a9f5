"""Commands that look after what is stored: info, verify, merge. No torch."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from trak_lightning.cli.names import load_config
from trak_lightning.cli.output import summary
from trak_lightning.errors import CorruptFileError, TrakError
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.formatting import format_bytes, format_ranges
from trak_lightning.scoring.scores import Scores
from trak_lightning.seeds import fingerprint
from trak_lightning.stores.base import FeatureSet, FeatureStore
from trak_lightning.stores.configured import open_store
from trak_lightning.stores.merge import merge as merge_runs


def info(argv: Sequence[str]) -> int:
    """``trak info``."""
    from rich.console import Console
    from rich.table import Table

    run, store = _open("info", "Print what a run directory holds, and what is missing.", argv)
    table = Table(title=str(run.path), title_justify="left")
    for heading in ("split", "checkpoint", "rows", "of", "k", "dtype", "missing samples", "size", "fingerprint"):
        table.add_column(
            heading, justify="right" if heading in ("rows", "of", "k", "size") else "left", overflow="fold"
        )
    sources = {record.id: record.source for record in run.read().checkpoints}
    damaged = []
    for split, checkpoint in store.list():
        try:
            found = store.open(split, checkpoint)
        except CorruptFileError as error:
            damaged.append(str(error))
            continue
        spec = found.spec
        missing = [spec.block_range(block) for block in found.missing_blocks()]
        manifest = getattr(found, "manifest", None)
        table.add_row(
            split,
            checkpoint,
            str(spec.num_samples - sum(part.stop - part.start for part in missing)),
            str(spec.num_samples),
            str(spec.dim),
            manifest.dtype if manifest else "",
            format_ranges(missing) or "none",
            format_bytes(found.nbytes()),
            fingerprint(spec.fingerprint),
        )
    console = Console()
    console.print(table)
    for checkpoint, source in sources.items():
        console.print(f"checkpoint {checkpoint}: {source}", markup=False, highlight=False)
    for fault in damaged:
        console.print(f"damaged: {fault}", style="red", markup=False, highlight=False)
    return 1 if damaged else 0


def verify(argv: Sequence[str]) -> int:
    """``trak verify``: exit status 1 unless every row is there and is what was written."""
    started = time.perf_counter()
    run, store = _open("verify", "Check that every row is there and is what was written.", argv)
    faults, rows, sets = [], 0, store.list()
    for split, checkpoint in sets:
        try:
            found = store.open(split, checkpoint)
        except TrakError as error:
            faults.append(str(error))
            continue
        checked, wrong = _verify_set(found)
        rows += checked
        faults += wrong
    if not sets:
        faults.append(f"there are no features in {store.elsewhere or run.features}")
    for record in run.read().checkpoints:
        try:
            run.read_subset(record.id)
        except TrakError as error:
            faults.append(str(error))
    score_files = sorted((run.path / "scores").glob("*.h5"))
    for path in score_files:
        try:
            Scores(path).verify()
        except TrakError as error:
            faults.append(str(error))
    for fault in faults:
        print(fault)
    result = f"{len(faults)} fault{'s' * (len(faults) > 1)}" if faults else "all there and as written"
    what = f"{rows} rows of {len(sets)} feature sets" + (f" and {len(score_files)} score files" if score_files else "")
    summary("verify", f"{what} in {run.path}: {result}", rows, "checked", started)
    return 1 if faults else 0


def _verify_set(found: FeatureSet) -> tuple[int, list[str]]:
    spec, missing = found.spec, found.missing_blocks()
    faults = found.strays()
    if missing:
        rows = format_ranges(map(spec.block_range, missing))
        faults.append(f"{spec.split}/{spec.checkpoint}: samples {rows} are missing. Run featurize again.")
    checked = 0
    for block in sorted(set(range(spec.num_blocks)) - set(missing)):
        try:
            found.verify_block(block)
            checked += len(spec.block_range(block))
        except TrakError as error:
            faults.append(str(error))
    return checked, faults


def merge(argv: Sequence[str]) -> int:
    """``trak merge``."""
    started = time.perf_counter()
    parser = ArgumentParser(
        prog="trak merge",
        description="Write the features of a run directory, or of several that each hold a part, to one HDF5 file or to "
        "another store.",
    )
    parser.add_argument("run_dirs", type=str, nargs="+", help="run directories")
    parser.add_argument(
        "--output",
        type=str,
        required=True,
        help="what to write: a file such as features.h5, or a run directory with --to",
    )
    _add_store(parser, "--store", "of the run directories; default: those of their config.yaml, or hdf5")
    _add_store(parser, "--to", "write a run directory with this store, of which trak goes on, instead of an HDF5 file")
    config = parser.parse_args(list(argv))
    output = Path(config.output).expanduser()
    paths = [Path(path) for path in config.run_dirs]
    sets = merge_runs(paths, output, store=_choice(config.store), to=_choice(config.to))
    rows = sum(found.spec.num_samples for found in sets)
    summary("merge", f"{rows} rows of {len(sets)} feature sets in {output}", rows, "written", started)
    return 0


def _open(command: str, description: str, argv: Sequence[str]) -> tuple[RunDirectory, FeatureStore]:
    parser = ArgumentParser(prog=f"trak {command}", description=description)
    parser.add_argument("run_dir", type=str, help="a run directory")
    _add_store(parser, "--store", "default: that of config.yaml, or hdf5")
    config = parser.parse_args(list(argv))
    run = RunDirectory(config.run_dir)
    return run, open_store(run, _choice(config.store))


def _add_store(parser: ArgumentParser, option: str, help_: str) -> None:
    parser.add_argument(option, type=str | None, default=None, help=f"a store's name, or {{name: …, options}}: {help_}")


def _choice(text: str | None) -> Any:
    return load_config(text) if text and text.lstrip().startswith("{") else text
