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

from trak_lightning.cli.usage import COMMANDS, usage

NEED_A_MODEL = ("run", "check", "train", "featurize")
"""Commands that import torch before they read all their options; their help and most mistakes do not wait for it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 only if everything asked for is done, 2 if options or settings are wrong."""
    try:
        try:
            return _main(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough: trak plugins | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from trak_lightning import __version__

        print(f"trak_lightning {__version__}")
        return 0
    command, *rest = argv
    command = command.replace("_", "-")
    with at_home(command):
        return _call(command, rest)


def _call(command: str, argv: list[str]) -> int:
    # Not at the top: what is imported before `at_home` may be a file of the working directory that has the name of a module.
    from trak_lightning.errors import PluginError, SettingsError, TerminatedError, TrakError, did_you_mean

    if command not in COMMANDS:
        print(
            f"trak: unknown command {command!r}{did_you_mean(command, COMMANDS)} Commands: {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    try:
        if command in NEED_A_MODEL:
            from trak_lightning.cli.arguments import model_help, refuse_early

            if not {"-h", "--help"}.isdisjoint(argv):
                print(model_help(command), end="")
                return 0
            if not any(each.startswith("--print_config") or each.endswith(".help") for each in argv):
                refuse_early(command, argv)
        return int(import_module(f"trak_lightning.cli.commands.{command.replace('-', '_')}").main(argv))
    except KeyboardInterrupt:
        print(
            f"trak {command}: interrupted; every checkpoint, block and retrained model that was finished is kept. Run the "
            "same command to resume.",
            file=sys.stderr,
        )
        return 130
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
    """Let classes be imported from the working directory, and show a warning as one line, the same one only once.

    The directory comes last, also where ``python -m`` has put it first: a user's attr.py must not hide a module of our dependencies.
    """
    shown = set()

    def show_once(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if (line := f"trak {command}: {category.__name__}: {message}") not in shown:  # each model that is trained warns
            shown.add(line)
            print(line, file=sys.stderr)

    here, path, show = str(Path.cwd()), list(sys.path), warnings.showwarning
    others = path[1:] if path[:1] in ([""], [here]) else path
    sys.path[:] = others if here in others else [*others, here]
    # Not formatwarning, which Lightning replaces when it is imported.
    warnings.showwarning = show_once
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
