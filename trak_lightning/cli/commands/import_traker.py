"""``trak import-traker``: the features that traker saved → a run directory."""

from collections.abc import Sequence

from trak_lightning.cli.command_line import CommandLine
from trak_lightning.cli.help import command_parser
from trak_lightning.cli.output import summary
from trak_lightning.interop.traker import describe, import_traker
from trak_lightning.run.directory import RunDirectory
from trak_lightning.stores.configured import open_store


def main(argv: Sequence[str]) -> int:
    """Import the features, and print what was read."""
    parser = command_parser(
        "import-traker",
        "SAVE_DIR RUN_DIR",
        "Read the projected gradients that traker saved into a run directory, to be scored by trak score.",
    )
    parser.add_argument("--save_dir", type=str, required=True, help="the save_dir of a TRAKer; also by position")
    parser.add_argument("--run_dir", type=str, required=True, help="the run directory to make; also by position")
    config = CommandLine.of(argv, parser, positionals=("save_dir", "run_dir")).parse()
    run = RunDirectory(config.run_dir)
    run.path.mkdir(parents=True, exist_ok=True)
    for line in describe(import_traker(config.save_dir, run, open_store(run)), run):
        summary("import", line)
    return 0
