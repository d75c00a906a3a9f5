"""What a person types → what the parsers take.

- ``--max-epochs`` and ``--max_epochs`` are the same option.
- The run directory is written first, without ``--run_dir``; without ``--config``, its own configuration is used.
- One configuration file serves all commands: settings that a command does not read are taken out.
- A file that LightningCLI saved is a configuration file: `normalized_config`.
- Plug-ins have short names: `trak_lightning.cli.plugin_names`.
"""

import json
import re
import sys
from argparse import ArgumentError
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader

from trak_lightning.cli.error_messages import UsageError, explained
from trak_lightning.cli.plugin_names import KINDS, Names

PRINT_CONFIG = "--print_config"
"""The option that takes a value only behind an equals sign."""

CLASSES = {f"--{key}_class": key for key in ("model", "data", "optimizer", "lr_scheduler")}
"""Options that name the class whose settings stand without a class path in the configuration."""

_LISTS = (
    "Several values are written as a list, '[a, b]', and a pattern in quotes, 'seed*.ckpt', so that the shell does not "
    "expand it."
)

LIGHTNING_ONLY = ("ckpt_path", "verbose")
"""Settings in a file that LightningCLI saved which are for ``fit`` alone."""


@dataclass(frozen=True)
class Option:
    """One option, ``--name value``."""

    name: str
    value: str | None = None

    @property
    def key(self) -> str:
        """The setting: ``projector.dim``."""
        return self.name.lstrip("-").removesuffix("+")

    @property
    def setting(self) -> str:
        """The first part of its name: ``projector``."""
        return self.key.partition(".")[0]

    @property
    def token(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value}"


@dataclass(frozen=True)
class CommandLine:
    """The options of a command, in order, and its parser."""

    parser: ArgumentParser
    options: tuple[Option, ...]
    values: tuple[str, ...] = ()
    """What the parser takes by position."""

    @classmethod
    def of(
        cls,
        argv: Sequence[str],
        parser: ArgumentParser,
        *,
        positionals: Sequence[str] | None = ("run_dir",),
        renamed: Mapping[str, str] | None = None,
    ) -> "CommandLine":
        """Read `argv`.

        Args:
            argv: what follows the command.
            parser: that of the command, which knows the options that take no value.
            positionals: the options that may be given by position alone; if None, the parser takes any number of values.
            renamed: old option → new option; the old one works, and a line on standard error names the new one.

        Raises:
            UsageError: there are more positions than `positionals`, or two names of one option have different values.
        """
        flags = {name for action in parser._actions if action.nargs == 0 for name in action.option_strings}
        options, values = _split(argv, {*flags, PRINT_CONFIG})
        if positionals is None:
            return cls(parser, tuple(options), tuple(values))
        if len(values) > len(positionals):
            extra = values[len(positionals)]
            known = {name for action in parser._actions for name in action.option_strings}
            meant = extra.isdecimal() and "--target" in known and "--remove" not in known  # which takes several numbers
            hint = f"Did you mean --target {extra}?" if meant else _LISTS
            raise UsageError(f"unexpected argument {extra!r}. {hint}")
        named = [Option(f"--{name}", value) for name, value in zip(positionals, values, strict=False)]
        if "run_dir" in positionals and (file := next((value for value in values if Path(value).is_file()), None)):
            raise UsageError(f"{file!r} is a file where a run directory was expected. {_LISTS}")
        for old, new in (renamed or {}).items():
            if any(option.name == old for option in options):
                print(f"trak: {old} is now {new}; the old name still works", file=sys.stderr)
        options = [Option((renamed or {}).get(option.name, option.name), option.value) for option in options]
        _require_one_spelling(options, parser)
        return cls(parser, (*options, *named))  # the last one wins, also over a configuration file

    def value(self, name: str) -> str | None:
        """The last value of an option, or None."""
        return next((option.value for option in reversed(self.options) if option.name == name), None)

    @property
    def configs(self) -> list[str]:
        """Files, and YAML between braces, in order."""
        return [option.value for option in self.options if option.name == "--config" and option.value is not None]

    def with_saved_configuration(self) -> "CommandLine":
        """Add the configuration of the run directory, if there is one and no other is named."""
        run_dir = self.value("--run_dir")
        if self.configs or run_dir is None:
            return self
        saved = Path(run_dir).expanduser() / "config.yaml"
        return replace(self, options=(Option("--config", str(saved)), *self.options)) if saved.is_file() else self

    def parse(self, *, uses: Collection[str] = (), drops: Collection[str] = ()) -> Namespace:
        """Return the settings; `uses` and `drops` as for `argv`.

        Raises:
            UsageError: in one line, what is wrong with them and where.
        """
        argv = self.argv(uses=uses, drops=drops)
        try:
            return self.parser.parse_args(argv)
        except ArgumentError as error:
            options = [option.key for option in self.options]
            raise UsageError(explained(error.message, self.parser, options, self.configs, drops)) from error

    def argv(self, *, uses: Collection[str], drops: Collection[str] = ()) -> list[str]:
        """Return the arguments for the parser.

        Args:
            uses: plug-in settings whose classes the command uses.
            drops: settings that the command does not read.

        Raises:
            UsageError: a configuration file cannot be read.
            PluginError: an unknown plug-in name.
        """
        names = Names(uses)
        classes = {CLASSES[option.name]: option.value for option in self.options if option.name in CLASSES}
        named = {**self._classes_in_files(), **classes}
        arguments = [
            Option(option.name, _config(option.value, names, drops, classes, named)).token
            if option.name == "--config" and option.value is not None
            else _plugin(option, names).token
            for option in self.options
            if option.name not in CLASSES and option.setting not in drops
        ]
        if classes and not self.configs:
            missing = {key: {"class_path": path} for key, path in classes.items() if key not in drops}
            arguments.insert(0, f"--config={json.dumps(missing)}")
        return [*self.values, *arguments]

    def _classes_in_files(self) -> dict[str, str]:
        """The class paths in the configuration files, since one file may name a class and another hold its settings."""
        found = {}
        for config in map(load_config, self.configs):
            for option, key in CLASSES.items():
                value = config.get(option[2:], config.get(key))
                path = value.get("class_path") if isinstance(value, dict) else value
                if isinstance(path, str):
                    found[key] = path
        return found


def load_config(source: str) -> dict[str, Any]:
    """The mapping in a YAML file, or in inline YAML.

    Raises:
        UsageError: there is no such file, or it does not hold a mapping.
    """
    path = Path(source)
    inline = source.lstrip().startswith("{")
    if not inline and not path.is_file():
        raise UsageError(f"there is no configuration file {source} (looked in {Path.cwd()})")
    try:
        config = get_loader("yaml")(source if inline else path.read_text())
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        raise UsageError(f"{source}{f':{mark.line + 1}' if mark else ''}: not valid YAML: {problem}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{source} must hold a mapping of settings, found {type(config).__name__}")
    return config


def normalized_config(
    config: Mapping[str, Any], classes: Mapping[str, str | None], named: Mapping[str, str | None] | None = None
) -> dict[str, Any]:
    """Return a configuration without what only Lightning's ``fit`` reads.

    A file that LightningCLI saved says null where nothing was chosen, has settings of ``fit``, and no class paths where the
    program had classes, which are then in `classes`, in the file under ``model_class`` and so on, or `named` in another file.
    """
    found = {key: value for key, value in config.items() if key not in LIGHTNING_ONLY}
    for key in ("weights_only", "optimizer", "lr_scheduler"):
        if key in found and found[key] is None:
            del found[key]
    if isinstance(trainer := found.get("trainer"), dict):
        found["trainer"] = {key: value for key, value in trainer.items() if value is not None}
    own = {key: found.pop(option[2:]) for option, key in CLASSES.items() if option[2:] in found}
    others = {key: path for key, path in (named or {}).items() if isinstance(found.get(key), dict)}
    for key, path in {**others, **own, **classes}.items():
        value = found.get(key) or {}
        if not (isinstance(value, dict) and "class_path" in value):
            settings = value["init_args"] if isinstance(value, dict) and set(value) == {"init_args"} else value
            found[key] = {"class_path": path, "init_args": settings}
    return found


def _split(argv: Sequence[str], flags: Collection[str]) -> tuple[list[Option], list[str]]:
    """Split the arguments into options and the values that belong to none."""
    options, values = [], []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("-") or token == "-":
            values.append(token)
            continue
        name, equals, value = token.partition("=")
        name = "--config" if name == "-c" else _underscored(name)
        if equals:
            options.append(Option(name, value))
        elif name in flags or not tokens or re.match(r"--|-[A-Za-z]", tokens[0]):
            options.append(Option(name))
        else:
            options.append(Option(name, tokens.pop(0)))
    return options, values


def _require_one_spelling(options: Sequence[Option], parser: ArgumentParser) -> None:
    """Refuse two names of one option with different values, of which a user would not expect that the last one wins."""
    for action in parser._actions:
        given = {option.name: option for option in options if option.name in action.option_strings}
        first, *others = given.values() or (None,)
        for other in others:
            if first is not None and other.value != first.value:
                raise UsageError(f"{first.token} and {other.token} are two names of one option; give one of them")


def _underscored(name: str) -> str:
    return f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name


def _plugin(option: Option, names: Names) -> Option:
    """``--projector sparse_jl``, ``--projector.name sparse_jl`` and their like, with the class path."""
    key, _, part = option.key.partition(".")
    if key not in KINDS or option.value is None or part not in ("", "name", "class_path", "help"):
        return option
    name = f"--{key}" if part == "name" else option.name
    if option.value.lstrip().startswith("{"):
        return Option(name, json.dumps(names.expand(key, load_config(option.value))))
    return Option(name, names.class_path(key, option.value))


def _config(
    source: str,
    names: Names,
    drops: Collection[str],
    classes: Mapping[str, str | None],
    named: Mapping[str, str | None],
) -> str:
    config = load_config(source)
    kept = {key: value for key, value in normalized_config(config, classes, named).items() if key not in drops}
    expanded = {key: names.expand(key, value) for key, value in kept.items()}
    # Unchanged files stay files, so that paths in them keep being relative to them.
    return source if expanded == config else json.dumps(expanded, default=str)
