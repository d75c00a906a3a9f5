"""trak import-traker."""

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from trak_lightning.cli.names import rewrite
from trak_lightning.cli.output import summary
from trak_lightning.interop.traker import describe
from trak_lightning.interop.traker import import_traker as import_features
from trak_lightning.run.directory import RunDirectory
from trak_lightning.stores.configured import open_store


def import_traker(argv: Sequence[str]) -> int:
    """``trak import-traker``."""
    parser = ArgumentParser(
        prog="trak import-traker",
        description="Read the projected gradients that traker saved into a run directory, to be scored by trak score.",
    )
    parser.add_argument("save_dir", type=str, help="the save_dir of a TRAKer")
    parser.add_argument("--run_dir", type=str, required=True, help="the run directory to make")
    config = parser.parse_args(rewrite(argv, reads=()))
    run = RunDirectory(config.run_dir)
    run.path.mkdir(parents=True, exist_ok=True)
    for line in describe(import_features(config.save_dir, run, open_store(run)), run):
        summary("import", line)
    return 0
