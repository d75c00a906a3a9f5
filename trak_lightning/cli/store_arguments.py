"""Options of commands on what is stored in a run directory. No torch."""

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from trak_lightning.cli.command_line import load_config
from trak_lightning.cli.help import command_parser
from trak_lightning.errors import IncompleteRunError
from trak_lightning.run.directory import RunDirectory
from trak_lightning.stores.base import FeatureStore
from trak_lightning.stores.configured import open_store

MADE = ("run.json", "config.yaml", "checkpoints", "features", "scores", "evaluation")
"""What a run directory has at least one of."""


def run_parser(
    command: str, description: str, *, usage: str = "RUN_DIR [options]", of: str = "a run directory"
) -> ArgumentParser:
    """A parser of a command on one run directory; `of` says what it must hold."""
    parser = command_parser(command, usage, description)
    parser.add_argument("--run_dir", type=str, required=True, help=f"{of}; also by position")
    return parser


def stored_parser(command: str, description: str) -> ArgumentParser:
    """A parser of a command on the features of a run."""
    parser = run_parser(command, description)
    add_store(parser, "--store", "; default: that of RUN_DIR/config.yaml, or hdf5")
    add_json(parser)
    return parser


def scored_parser(command: str, description: str, *, usage: str = "RUN_DIR [options]") -> ArgumentParser:
    """A parser of a command on the scores of a run; the score file of a target split has its name."""
    parser = run_parser(command, description, usage=usage, of="a run directory with scores")
    parser.add_argument(
        "--name",
        "--target_split",
        type=str | None,
        help="score file, by default named after its target split; default: that of the target_split of the run, of test, or the only one",
    )
    return parser


def add_json(parser: ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_numbers(parser: ArgumentParser) -> None:
    """Add ``--numbers``."""
    parser.add_argument("--numbers", action="store_true", help="do not load the data to show labels and text")


def add_store(parser: ArgumentParser, option: str, about: str) -> None:
    """Add an option that chooses a store."""
    parser.add_argument(option, type=str | None, help=f"a store's name, or {{name: …, options}}{about}")


def chosen(text: str | None) -> Any:
    """What an option of `add_store` chooses, for `registry.create`."""
    return load_config(text) if text is not None and text.lstrip().startswith("{") else text


def opened(config: Namespace) -> tuple[RunDirectory, FeatureStore]:
    """The run directory of a parsed command line, and its store.

    Raises:
        IncompleteRunError: the folder is not a run directory.
    """
    run = RunDirectory(config.run_dir)
    if run.path.is_dir() and not any((run.path / name).exists() for name in MADE):
        raise IncompleteRunError(
            f"{run.path} is not a run directory: it holds none of {', '.join(MADE)}. Give the run_dir of a configuration file."
        )
    return run, open_store(run, chosen(config.store))
