"""Report a mistake in the settings as one line: the place, the fault, the value expected, and a suggestion.

jsonargparse reports every type that it tried, as a tree. `fault_in` finds the relevant leaf, and `explained` names the place of
the setting: an option, or a line of a configuration file.
"""

import difflib
import importlib
import re
import textwrap
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from trak_lightning.cli.plugin_names import KINDS
from trak_lightning.errors import SettingsError
from trak_lightning.registry import imported, options_of


class UsageError(SettingsError):
    """A command was called with options or a configuration that it does not accept."""


BASES = ("lightning.LightningModule", "lightning.LightningDataModule", "torch.optim.Optimizer")
"""The base classes that jsonargparse tries if the configuration names no class."""

KEYWORDS = ("class_path", "init_args", "dict_kwargs")

WORDS = {
    "NoneType": "null",
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "an integer",
    "list": "a list",
    "str": "a string",
}
"""Plain words for types."""


@dataclass(frozen=True)
class Fault:
    """The leaf of an error message of jsonargparse."""

    text: str
    key: tuple[str, ...] = ()
    """The setting: ``("model", "width")``."""
    owner: str | None = None
    """The class path of the class that the option belongs to."""
    value: str | None = None


def fault_in(message: str) -> Fault:
    """Find the fault in an error message of jsonargparse."""
    text = textwrap.dedent(message).strip("\n")
    if found := re.match(r'Parser key "([^"]+)":\s*?\n(.*)', text, re.DOTALL):
        inner = fault_in(found[2])
        return replace(inner, key=(*found[1].split("."), *inner.key))
    if found := re.match(r"Problem with given class_path '([^']+)':\s*?\n(.*)", text, re.DOTALL):
        inner = fault_in(found[2])
        return replace(inner, owner=inner.owner or found[1])
    if found := re.search(r"^( *)Errors:\n(.*?)^\1Given value type: [^\n]*\n\1Given value: (.*)", text, re.M | re.S):
        return _of_union(re.split(r"^- ", textwrap.dedent(found[2]), flags=re.M)[1:], found[3].strip())
    if found := re.match(r"Expected a (.+?)\. Got value: (.*)", text, re.DOTALL):
        return Fault(f"expected {_type(found[1])}", value=found[2].strip())
    if found := re.match(r"Import path .*does not correspond to a subclass of (\w+)", text):
        return Fault(f"expected a subclass of {found[1]}")
    if found := re.match(r"unrecognized arguments: --([^=\s]+)", text):
        return Fault("unknown", key=tuple(found[1].split(".")))
    if found := re.match(r"(?:Option|Group '(?P<group>[^']+)' does not accept option) '?(?P<name>[^']+)'", text):
        group = found["group"].split(".") if found["group"] else []
        return Fault("unknown", key=(*group, *found["name"].split(".")))
    return Fault(" ".join(text.split()))


def _of_union(errors: Sequence[str], value: str) -> Fault:
    """Return the most specific of the errors that `value` gave as each of the types that are allowed."""
    telling = [error for error in errors if not error.startswith(("Expected a ", "Not a valid subclass"))]
    if telling:
        lines = telling[0].split("\n", 1)
        fault = fault_in(lines[0] + "\n" + textwrap.dedent(lines[1]) if len(lines) > 1 else lines[0])
        return replace(fault, value=fault.value or value)
    expected = dict.fromkeys(_type(error.removeprefix("Expected a ").split("\n")[0].strip()) for error in errors)
    return Fault("expected " + " or ".join(expected).replace(" or one of ", ", "), value=value)


def _type(name: str) -> str:
    if name.startswith(("dot import path", "Not a valid subclass")):
        return "a class path such as package.module.Class"
    if found := re.fullmatch(r"<class '(?:.*\.)?(\w+)'>", name):
        return WORDS.get(found[1], found[1])
    return "one of " + name[len("typing.Literal[") : -1] if name.startswith("typing.Literal[") else name


def explained(
    message: str,
    parser: ArgumentParser,
    given: Sequence[str],
    configs: Sequence[str],
    unread: Collection[str] = (),
) -> str:
    """Convert an error message of `parser` to one line.

    Args:
        message: the error message.
        parser: the parser.
        given: the settings given as options, such as ``projector.dim``.
        configs: the configuration files, in order.
        unread: settings that `parser` does not know, and other commands do.
    """
    if found := re.match(r"unrecognized arguments: (--?)([^=\s]+)", message):
        return _unknown_option(found[1], found[2], parser, unread)
    if found := re.match(r"argument (-\S+): expected one argument", message):
        return f"option {found[1]} needs a value"
    if found := re.search(r'[Kk]ey "([^"]+)" is required|arguments are required: ([^\s,]+)', message):
        return missing((found[1] or found[2]).lstrip("-"))
    fault = fault_in(message)
    if not fault.key:
        return fault.text
    settings = {action.dest for action in parser._actions} | {*unread}
    where = _where(fault.key, given, configs)
    if fault.text == "unknown":
        fault = replace(fault, key=_unknown_part(fault, settings))
        where = where and _where(fault.key, given, configs)
    name = ".".join(fault.key)
    if fault.text == "unknown":
        return f"{where}{_unknown_setting(fault, settings)}"
    if fault.text.startswith("expected "):
        return f"{where}{name} is {fault.value}; {fault.text}{_hint(fault)}"
    if fault.owner and re.match(r"No module named|module .* has no attribute", fault.text):
        return f"{where}{name} is {fault.owner}: {fault.text}{_importable(fault.owner)}"
    return f"{where}{name}: {fault.text}"


def _unknown_option(dashes: str, name: str, parser: ArgumentParser, unread: Collection[str]) -> str:
    options = {option.lstrip("-") for action in parser._actions for option in action.option_strings} | {*unread}
    longer = {each.rpartition(".")[2]: each for each in (*options, *_plugin_options(parser)) if "." in each}
    close = difflib.get_close_matches(name, longer, n=1, cutoff=0.85)
    nearest = f"; did you mean --{longer[close[0]]}?" if close else _nearest(name, options, dashes)
    return f"unknown option {dashes}{name}{nearest}"


def _unknown_setting(fault: Fault, settings: Collection[str]) -> str:
    *outer, last = fault.key
    name, setting = ".".join(fault.key), fault.key[0]
    if keyword := _keyword(fault):
        return f"unknown setting {name}; did you mean {'.'.join((*outer, keyword))}?"
    if fault.owner in BASES:
        return (
            f"{name} needs a class: --{setting}_class mine.Name, or {setting}_class: mine.Name in a configuration file"
        )
    if not fault.owner:
        return f"unknown setting {name}{_nearest(name, settings) or '.'}"
    known = _options(fault.owner)
    takes = f"{fault.owner.rpartition('.')[2]} takes {', '.join(known) or 'no options'}."
    return f"unknown setting {name}{_nearest(last, known, '.'.join(outer) + '.') or '.'} {takes}"


def _hint(fault: Fault) -> str:
    """What to do about a value of the wrong type, after a colon."""
    if fault.owner and fault.key[0] in KINDS and " or " in fault.text:  # which numbers and strings
        about = _about(fault.owner, fault.key[-1])
        return f": {about}" * bool(about)
    if "a number" in fault.text and (share := re.fullmatch(r"['\"]?([\d.]+) ?%['\"]?", fault.value or "")):
        return f": {float(share[1]) / 100:g} for {share[1]} %"
    if fault.key == ("model",) and fault.text.endswith("LightningModule"):
        return ": wrap your torch.nn.Module in one, or use it as it is in Python (trak_lightning.TRAK)"
    return ""


def _unknown_part(fault: Fault, settings: Collection[str]) -> tuple[str, ...]:
    """The key down to the part that is unknown: ``trainr`` of ``trainr.max_epochs``, ``model.init_arg`` of ``model.init_arg.width``."""
    for end in range(1, len(fault.key)):
        part = replace(fault, key=fault.key[:end])
        if _keyword(part) or not (fault.owner or any(each.partition(".")[0] == fault.key[0] for each in settings)):
            return part.key
    return fault.key


def _keyword(fault: Fault) -> str:
    """The keyword of jsonargparse, or ours for the name of a plug-in, that the last part of an unknown key was meant to be."""
    *owner, last = fault.key
    keywords = [*KEYWORDS, *(["name"] if owner and owner[0] in KINDS else [])]
    close = difflib.get_close_matches(last, keywords, n=1, cutoff=0.8)
    return close[0] if fault.text == "unknown" and owner and close and close[0] != last else ""


def missing(key: str) -> str:
    """Say that a setting is missing, and how to give it."""
    remedy = {
        "run_dir": "write it after the command, trak COMMAND RUN_DIR, or as run_dir in the configuration file",
        "model": "name your LightningModule, --model mine.Net, or a configuration file that does, --config mine.yaml",
        "data": "name your LightningDataModule, --data mine.Digits, or put it under data in the configuration file",
    }.get(key, f"give --{key}, or put it into the configuration file")
    return f"{key} is missing: {remedy}"


def _importable(path: str) -> str:
    """Suggest a class for a class path that cannot be imported, or say where it was searched for."""
    module, _, name = path.rpartition(".")
    try:
        known = [each for each, value in vars(importlib.import_module(module)).items() if isinstance(value, type)]
    except Exception:  # a user's module may raise anything
        return f" (looked in {Path.cwd()} and the installed packages)"
    return _nearest(name, known, f"{module}.")


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    settings = sorted(each for each in known if not each.endswith(".help"))
    nearest = difflib.get_close_matches(name, settings, n=1) or difflib.get_close_matches(
        name.partition(".")[0], settings, n=1
    )
    return f"; did you mean {prefix}{nearest[0]}?" if nearest else ""


def _plugin_options(parser: ArgumentParser) -> list[str]:
    """The options of the plug-ins that are the defaults of `parser`, such as ``scorer.regularization``; not of those that import torch."""
    paths = {
        action.dest: (action.default or {}).get("class_path")
        for action in parser._actions
        if action.dest in ("scorer", "store")
    }
    return [f"{setting}.{name}" for setting, path in paths.items() if path for name in _options(path)]


def _options(path: str) -> list[str]:
    """The options of the class of that path."""
    return options_of(imported(path))


def _about(path: str, option: str) -> str:
    """What the docstring of the class of that path says of an option."""
    parser = ArgumentParser(add_help=False)
    parser.add_class_arguments(imported(path), "options")
    found = (action.help or "" for action in parser._actions if action.dest == f"options.{option}")
    return " ".join(next(found, "").replace("``", "").split())


def _where(key: Sequence[str], given: Sequence[str], configs: Sequence[str]) -> str:
    """The file and line of a setting, with a colon; empty for an option, since the message names it."""
    plain = _plain(key)
    if any(_plain(option.split(".")) == plain for option in given):
        return ""
    for source in reversed(configs):
        if not source.lstrip().startswith("{") and (number := _line(Path(source), plain)):
            return f"{source}:{number}: "
    return ""


def _plain(key: Iterable[str]) -> list[str]:
    return [part for part in key if part != "init_args"]


def _line(path: Path, key: Sequence[str]) -> int | None:
    """The line of a setting in a YAML file, or that of the nearest enclosing setting."""
    try:
        node: Any = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    except (OSError, yaml.YAMLError):
        return None
    number = None
    for part in key:
        entries = _entries(node)
        if part not in entries and "init_args" in entries:
            entries = _entries(entries["init_args"][1])
        if part not in entries:
            break
        name, node = entries[part]
        number = name.start_mark.line + 1
    return number


def _entries(node: Any) -> dict[str, tuple[Any, Any]]:
    if isinstance(node, yaml.SequenceNode):  # a key does not say of which element
        return {name: found for each in reversed(node.value) for name, found in _entries(each).items()}
    return {name.value: (name, value) for name, value in node.value} if isinstance(node, yaml.MappingNode) else {}
