"""The command line: ``trak COMMAND …``, one module per command in `commands`.

A command's module is imported only when the command is called. Commands that need a model are LightningCLI runs (`job`);
the others answer without importing torch.
"""

import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

COMMANDS = {
    "run": "train, featurize, score and evaluate, from one configuration file; run again, it does what is missing",
    "sft": "attribute answers of a fine-tuned language model: its folder, its conversations, and questions",
    "check": "report from a few batches what would be attributed and how, or why it cannot be; nothing is stored",
    "train": "train an ensemble of checkpoints, each on its own random part of the training set",
    "featurize": "compute and store projected per-sample gradients of training and target samples",
    "score": "attribute the targets to the training samples",
    "evaluate": "retrain models on random subsets and test whether the scores predict them",
    "top": "print the most helpful and most harmful training samples of a target",
    "tokens": "say which tokens of a training sample moved which tokens of a target",
    "self-influence": "compute the self-influence and leverage of each training sample",
    "suspects": "list training samples whose label is likely wrong, with a stated share of false alarms",
    "whatif": "predict how the outputs of targets would change if a set of training samples had not been there",
    "select": "choose the training samples to keep for the targets, given a budget",
    "report": "write one page, RUN_DIR/report/index.html, that shows targets with their examples",
    "info": "print what a run directory holds, and what is missing",
    "verify": "check that every stored row and score is present and intact",
    "merge": "copy the features of one or more run directories into one file or another store",
    "import-traker": "read the features that traker, the library of the TRAK paper, has saved",
    "plugins": "list the installed extractors, projectors, stores, tasks and scorers",
    "completion": "print a script by which bash, zsh or fish completes these commands and their options",
}

NEED_A_MODEL = ("run", "check", "train", "featurize")
"""Commands that import torch before they read all their options; their help and most mistakes do not wait for it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 only if everything asked for is done, 2 if options or settings are wrong."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from trak_lightning import __version__

        print(f"trak_lightning {__version__}")
        return 0
    command, *rest = argv
    command = command.replace("_", "-")
    if command not in COMMANDS:
        print(f"trak: unknown command {command!r}{_nearest(command)} Commands: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    with at_home(command):
        return _call(command, rest)


def _call(command: str, argv: list[str]) -> int:
    from trak_lightning.errors import PluginError, SettingsError, TerminatedError, TrakError

    try:
        if command in NEED_A_MODEL:
            from trak_lightning.cli.arguments import model_help, refuse_early

            if not {"-h", "--help"}.isdisjoint(argv):
                print(model_help(command), end="")
                return 0
            if not any(each.startswith("--print_config") or each.endswith(".help") for each in argv):
                refuse_early(command, argv)
        status = import_module(f"trak_lightning.cli.commands.{command.replace('-', '_')}").main(argv)
        sys.stdout.flush()
        return int(status)
    except KeyboardInterrupt:
        print(
            f"trak {command}: interrupted; every checkpoint, block and retrained model that was finished is kept. Run the "
            "same command to resume.",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:  # the reader has seen enough: trak plugins | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        # jsonargparse wraps what a class says of its settings in an error of its own.
        reason: BaseException | None = error
        while reason is not None and not isinstance(reason, TrakError):
            reason = reason.__cause__
        if reason is None:
            raise
        print(f"trak {command}: {type(reason).__name__}: {reason}{_hidden(str(reason))}", file=sys.stderr)
        if isinstance(reason, (PluginError, SettingsError)):
            return 2
        # What a shell reports of a process that SIGTERM ended.
        return 143 if isinstance(reason, TerminatedError) else 1


@contextmanager
def at_home(command: str) -> Iterator[None]:
    """Let classes be imported from the working directory, and show a warning as one line.

    The directory comes last, also where ``python -m`` has put it first: a user's attr.py must not hide a module of our dependencies.
    """
    here, path, show = str(Path.cwd()), list(sys.path), warnings.showwarning
    others = path[1:] if path[:1] in ([""], [here]) else path
    sys.path[:] = others if here in others else [*others, here]
    # Not formatwarning, which Lightning replaces when it is imported.
    warnings.showwarning = lambda message, category, *_, **__: print(
        f"trak {command}: {category.__name__}: {message}", file=sys.stderr
    )
    try:
        yield
    finally:
        sys.path[:] = path
        warnings.showwarning = show


def _hidden(message: str) -> str:
    """Say which module that a message names is not the one in the working directory, because an installed one has its name."""
    for name in dict.fromkeys(re.findall(r"\b([A-Za-z]\w*)(?=[.:]\w|')", message)):
        own = next((path for path in (Path(f"{name}.py"), Path(name)) if path.exists()), None)
        found = getattr(sys.modules.get(name), "__file__", None)
        if own and found and Path(found).resolve() not in (own.resolve(), own.resolve() / "__init__.py"):
            return f". {found} hides {own} of the working directory: give yours another name"
    return ""


def _nearest(command: str) -> str:
    import difflib

    nearest = difflib.get_close_matches(command, COMMANDS, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else "."


def _usage() -> str:
    commands = "\n".join(f"  {name:<15}{description}" for name, description in COMMANDS.items())
    return (
        "usage: trak COMMAND [RUN_DIR] [options]\n\nWhich training examples made the model predict this?\n\n"
        f"commands:\n{commands}\n\n"
        "A run directory holds everything that a run makes, its configuration included: after\n"
        "`trak run --config mine.yaml`, `trak score RUN_DIR` and the others need nothing else.\n"
        "trak COMMAND --help shows the options of a command."
    )
