"""``trak info``: what a run directory holds, and what is missing."""

from collections.abc import Sequence
from typing import Any

from trak_lightning.cli.command_line import CommandLine
from trak_lightning.cli.output import print_json, short_path
from trak_lightning.cli.store_arguments import opened, stored_parser
from trak_lightning.errors import CorruptFileError
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.formatting import format_bytes, format_ranges
from trak_lightning.seeds import fingerprint
from trak_lightning.stores.base import FeatureSet, FeatureStore


def main(argv: Sequence[str]) -> int:
    """Print the contents of a run directory. Return 1 if a feature set is damaged, else 0."""
    parser = stored_parser("info", "Print what a run directory holds, and what is missing.")
    config = CommandLine.of(argv, parser).parse()
    run, store = opened(config)
    found = _contents(run, store)
    if config.json:
        print_json(found)
    else:
        _print(run, found)
    return 1 if found["damaged"] else 0


def _contents(run: RunDirectory, store: FeatureStore) -> dict[str, Any]:
    sets, damaged = [], []
    for split, checkpoint in store.list():
        try:
            sets.append(_describe(store.open(split, checkpoint)))
        except CorruptFileError as error:
            damaged.append(str(error))
    return {
        "run_dir": run.path,
        "checkpoints": [{"id": record.id, "source": record.source} for record in run.read().checkpoints],
        "features": sets,
        "scores": sorted(path.stem for path in (run.path / "scores").glob("*.h5")),
        "damaged": damaged,
    }


def _describe(found: FeatureSet) -> dict[str, Any]:
    spec = found.spec
    missing = [spec.block_range(block) for block in found.missing_blocks()]
    return {
        "split": spec.split,
        "checkpoint": spec.checkpoint,
        "rows": spec.num_samples - sum(map(len, missing)),
        "num_samples": spec.num_samples,
        "dim": spec.dim,
        "dtype": getattr(getattr(found, "manifest", None), "dtype", None),
        "missing": format_ranges(missing) or None,
        "bytes": found.nbytes(),
        "fingerprint": fingerprint(spec.fingerprint),
    }


def _print(run: RunDirectory, found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for heading in ("split", "checkpoint", "rows", "k", "dtype", "size", "missing samples"):
        numeric = heading in ("rows", "k", "size")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=heading != "missing samples")
    for each in found["features"]:
        table.add_row(
            each["split"],
            each["checkpoint"],
            f"{each['rows']} of {each['num_samples']}",
            str(each["dim"]),
            each["dtype"] or "",
            format_bytes(each["bytes"]),
            each["missing"] or "none",
        )
    console = Console(soft_wrap=True)
    console.print(str(short_path(run.path)), markup=False, highlight=False)
    if found["features"]:
        Console().print(table)
    else:
        console.print("no features" if found["scores"] else "no features: run trak featurize")
    for each in found["checkpoints"]:
        console.print(f"checkpoint {each['id']}: {each['source']}", markup=False, highlight=False)
    for name in found["scores"]:
        console.print(f"scores {name}", markup=False, highlight=False)
    for fault in found["damaged"]:
        console.print(f"damaged: {fault}", style="red", markup=False, highlight=False)
