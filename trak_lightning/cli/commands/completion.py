"""``trak completion``: a script by which a shell completes commands, options and plug-in names."""

import contextlib
import io
import re
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence

from trak_lightning import registry
from trak_lightning.cli import main as run_command
from trak_lightning.cli.command_line import CommandLine
from trak_lightning.cli.error_messages import UsageError
from trak_lightning.cli.help import command_parser
from trak_lightning.cli.plugin_names import KINDS
from trak_lightning.cli.usage import COMMANDS

INSTALL = {
    "bash": "trak completion bash > ~/.local/share/bash-completion/completions/trak",
    "zsh": "trak completion zsh > ~/.trak.zsh, and in ~/.zshrc, after compinit: source ~/.trak.zsh",
    "fish": "trak completion fish > ~/.config/fish/completions/trak.fish",
}

BASH = """\
_trak() {
    local word="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="@commands@"
    else
        case "$previous" in
@values@
        esac
        [ -n "$words" ] || case "${COMP_WORDS[1]}" in
@options@
        esac
    fi
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ] || [[ "$word" == -* ]] || [[ "$previous" =~ ^(@kinds@)$ ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$word"))
    fi
}
complete -o default -F _trak trak
"""
"""Where nothing is proposed, bash completes file names."""


def main(argv: Sequence[str]) -> int:
    """Print the script for one shell."""
    where = "\n".join(f"  {shell}: {command}" for shell, command in INSTALL.items())
    parser = command_parser("completion", "SHELL", "Print a script by which a shell completes trak commands.\n" + where)
    parser.add_argument("--shell", type=str, required=True, help=SUPPRESS)
    shell = CommandLine.of(argv, parser, positionals=("shell",)).parse().shell
    if shell not in INSTALL:
        raise UsageError(f"there is completion for {', '.join(INSTALL)}, not for {shell!r}")
    options = {command: _options(command) for command in COMMANDS if command != "completion"}
    values = {f"--{key}": registry.names(kind) for key, kind in KINDS.items()}
    print(_fish(options, values) if shell == "fish" else _bash(options, values, zsh=shell == "zsh"), end="")
    return 0


def _options(command: str) -> list[str]:
    """The options that the help of a command shows."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        run_command([command, "--help"])
    found = re.findall(r"^  (?:-\w(?: \w+)?, )?(--[\w.]+)", shown.getvalue(), re.MULTILINE)
    return list(dict.fromkeys([*found, "--help"]))


def _bash(options: Mapping[str, Sequence[str]], values: Mapping[str, Sequence[str]], *, zsh: bool) -> str:
    def cases(words: Mapping[str, Sequence[str]]) -> str:
        return "\n".join(f'            {name}) words="{" ".join(each)}" ;;' for name, each in words.items())

    script = BASH.replace("@commands@", " ".join(COMMANDS)).replace("@kinds@", "|".join(values))
    script = script.replace("@options@", cases(options)).replace("@values@", cases(values))
    return f"autoload -U +X bashcompinit && bashcompinit\n{script}" if zsh else script


def _fish(options: Mapping[str, Sequence[str]], values: Mapping[str, Sequence[str]]) -> str:
    lines = ["complete -c trak -n __fish_use_subcommand -f"]
    lines += [f"complete -c trak -n __fish_use_subcommand -a {name} -d '{about}'" for name, about in COMMANDS.items()]
    for command, names in options.items():
        for name in names:
            known = f" -x -a '{' '.join(values[name])}'" if name in values else ""
            lines.append(f"complete -c trak -n '__fish_seen_subcommand_from {command}' -l {name[2:]}{known}")
    return "\n".join(lines) + "\n"
