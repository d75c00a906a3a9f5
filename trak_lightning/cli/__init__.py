"""The command line: ``trak COMMAND …``.

Commands that run a Trainer are LightningCLI runs; the others answer without importing torch. Each command's module is
imported only when it is called.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "run": ("training", "train, featurize, score and evaluate: the whole job, from one configuration file"),
    "train": ("training", "train an ensemble of checkpoints, each on its own random part of the training set"),
    "featurize": ("training", "compute and store projected per-sample gradients of training and target samples"),
    "check": ("checking", "say what would be attributed and how, from one batch, or why it cannot be"),
    "score": ("scoring", "attribute the targets to the training samples"),
    "evaluate": ("evaluate", "retrain models on random subsets and see whether the scores predict them"),
    "top": ("scoring", "print the most helpful and harmful training samples of a target"),
    "report": ("reporting", "make one page, RUN_DIR/report/index.html, that shows targets with their examples"),
    "info": ("storage", "print what a run directory holds, and what is missing"),
    "verify": ("storage", "check that every stored row and score is there and is what was written"),
    "merge": ("storage", "write the features of one or several run directories to one file, or to another store"),
    "import-traker": ("importing", "read the features that traker, the paper's own library, has saved"),
    "self-influence": ("scoring", "compute what every training sample does to itself, and its leverage"),
    "plugins": ("plugins", "list every extractor, projector, store, task and scorer that is installed"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, 0 only if everything asked for is done."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from trak_lightning import __version__

        print(f"trak_lightning {__version__}")
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        print(f"trak: unknown command {command!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    from trak_lightning.errors import TerminatedError, TrakError

    if command in ("run", "train", "featurize"):
        from trak_lightning.cli import stamps

        if stamps.finished(command, rest):
            print(f"{command:<10} already finished with these settings, nothing to do")
            return 0
    try:
        return int(
            getattr(import_module(f"trak_lightning.cli.{COMMANDS[command][0]}"), command.replace("-", "_"))(rest) or 0
        )
    except KeyboardInterrupt:
        print(f"trak {command}: interrupted; what is stored is kept, run the same command to go on", file=sys.stderr)
        return 130
    except Exception as error:
        # jsonargparse wraps what a class says of its settings in an error of its own.
        reason: BaseException | None = error
        while reason is not None and not isinstance(reason, TrakError):
            reason = reason.__cause__
        if reason is None:
            raise
        print(f"trak {command}: {type(reason).__name__}: {reason}", file=sys.stderr)
        # What a shell reports of a process that SIGTERM ended.
        return 143 if isinstance(reason, TerminatedError) else 1


def _usage() -> str:
    commands = "\n".join(f"  {name:<14} {description}" for name, (_, description) in COMMANDS.items())
    return (
        "usage: trak COMMAND [options]\n\nWhich training examples made the model predict this?\n\n"
        f"commands:\n{commands}\n\ntrak COMMAND --help shows a command's options."
    )
