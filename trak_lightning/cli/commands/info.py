"""``trak info``: what a run directory holds, and what is missing."""

from collections.abc import Sequence
from typing import Any

from trak_lightning.cli.command_line import CommandLine
from trak_lightning.cli.output import print_json, short_path
from trak_lightning.cli.store_arguments import opened, stored_parser
from trak_lightning.errors import CorruptFileError, TrakError
from trak_lightning.evaluation.result import read_result
from trak_lightning.run.directory import RunDirectory
from trak_lightning.run.formatting import format_bytes, format_ranges
from trak_lightning.scoring.display import print_table
from trak_lightning.scoring.scores import Scores
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
        "scores": [path.stem for path in run.score_files],
        "evaluations": _evaluations(run),
        "written": [path for name in ("suspects", "selection") if (path := run.path / name).is_dir()],
        "reports": [run.page(path.stem) for path in run.score_files if run.page(path.stem).exists()],
        "damaged": damaged,
    }


def _evaluations(run: RunDirectory) -> dict[str, str]:
    """What each stored result of `trak evaluate` says, or why it cannot be read."""
    found = {}
    for path in sorted(run.evaluation.glob("*.json")):
        try:
            found[path.stem] = read_result(path).headline
        except TrakError as error:
            found[path.stem] = str(error)
    return found


def _of_scores(run: RunDirectory, name: str) -> str:
    try:
        return Scores(run.scores(name)).describe()
    except TrakError as error:
        return str(error)


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
    rows = [
        (
            each["split"],
            each["checkpoint"],
            f"{each['rows']} of {each['num_samples']}",
            str(each["dim"]),
            each["dtype"] or "",
            format_bytes(each["bytes"]),
            each["missing"] or "none",
        )
        for each in found["features"]
    ]
    print(short_path(run.path))
    if rows:
        headings = ("split", "checkpoint", "rows", "k", "dtype", "size", "missing samples")
        print_table(headings, rows, numeric=(2, 3, 5))
    else:
        print("no features" if found["scores"] else "no features: run trak featurize")
    for each in found["checkpoints"]:
        print(f"checkpoint {each['id']}: {each['source']}")
    for name in found["scores"]:
        print(f"scores {name}: {_of_scores(run, name)}")
    for name, headline in found["evaluations"].items():
        print(f"evaluation {name}: {headline}")
    for folder in found["written"]:
        print(f"{folder.name} in {short_path(folder)}")
    for page in found["reports"]:
        print(f"report {short_path(page)}")
    for fault in found["damaged"]:
        print(f"damaged: {fault}")
