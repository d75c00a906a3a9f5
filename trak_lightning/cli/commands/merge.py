"""``trak merge``: the features of run directories → one file, or another store."""

import time
from collections.abc import Sequence
from pathlib import Path

from trak_lightning.cli.command_line import CommandLine
from trak_lightning.cli.help import command_parser
from trak_lightning.cli.output import summary
from trak_lightning.cli.store_arguments import add_store, chosen
from trak_lightning.stores.merge import merge


def main(argv: Sequence[str]) -> int:
    """Merge, and print what was written."""
    started = time.perf_counter()
    parser = command_parser(
        "merge",
        "RUN_DIR [RUN_DIR …] --output FILE [options]",
        "Write the features of a run directory, or of several that each hold a part, to one HDF5 file or to "
        "another store.",
    )
    parser.add_argument("run_dirs", type=str, nargs="+", help="run directories")
    parser.add_argument(
        "--output",
        type=str,
        required=True,
        help="what to write: a file such as features.h5, or a run directory with --to",
    )
    add_store(parser, "--store", " of the run directories; default: those of their config.yaml, or hdf5")
    add_store(parser, "--to", ": write a run directory with this store, which trak can use, instead of an HDF5 file")
    config = CommandLine.of(argv, parser, positionals=None).parse()
    output = Path(config.output).expanduser()
    paths = [Path(path) for path in config.run_dirs]
    sets = merge(paths, output, store=chosen(config.store), to=chosen(config.to))
    rows = sum(found.spec.num_samples for found in sets)
    summary("merge", f"{rows} rows of {len(sets)} feature sets in {output}", rows, "written", started)
    return 0
