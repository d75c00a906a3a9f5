"""``trak plugins``: what is installed, and the options of each."""

import inspect
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import asdict

from jsonargparse import ArgumentParser

from trak_lightning import registry
from trak_lightning.cli.command_line import CommandLine
from trak_lightning.cli.help import command_parser
from trak_lightning.cli.output import print_json
from trak_lightning.cli.store_arguments import add_json
from trak_lightning.errors import PluginError
from trak_lightning.registry import Plugin
from trak_lightning.scoring.display import print_table


def main(argv: Sequence[str]) -> int:
    """Print a table of all plug-ins, or one with its options; exit status 1 if one is broken."""
    parser = command_parser(
        "plugins",
        "[NAME] [options]",
        "List every plug-in that is installed; or show one and its options.",
    )
    parser.add_argument("--name", type=str | None, help="a plug-in to show; also by position")
    parser.add_argument("--check", action="store_true", help="import every plug-in, and say which are broken")
    add_json(parser)
    config = CommandLine.of(argv, parser, positionals=("name",)).parse()
    return _list(config.check, config.json) if config.name is None else _show(config.name)


def _list(check: bool, as_json: bool) -> int:
    unreadable = [f"{each.distribution}: {each.reason}" for each in registry.scan()[1]]
    found = [(plugin, error) for kind in registry.BASES for plugin, error in registry.diagnose(kind, load=check)]
    if as_json:
        listed = [{**asdict(plugin), "broken": error and str(error)} for plugin, error in found]
        print_json({"plugins": listed, "unreadable": unreadable})
    else:
        _print(found, unreadable, "ok" if check else "found")
    return 1 if unreadable or any(error for _, error in found) else 0


def _print(found: list[tuple[Plugin, PluginError | None]], unreadable: list[str], good: str) -> None:
    rows = [
        (each.kind.removesuffix("s"), each.name, f"{each.distribution} {each.version}", "broken" if error else good)
        for each, error in found
    ]
    print_table(("kind", "name", "distribution", "state"), rows)
    for fault in (*unreadable, *(str(error) for _, error in found if error)):
        print(f"broken: {fault}")


def _show(name: str) -> int:
    kinds = [kind for kind in registry.BASES if name in registry.names(kind)]
    if not kinds:
        everything = sorted({known for kind in registry.BASES for known in registry.names(kind)})
        raise PluginError(registry.unknown("plug-in", name, everything))
    for kind in kinds:
        plugin = registry.find(kind, name)
        key = kind.removesuffix("s")
        print(f"{key} {name}, {plugin.target} of {plugin.distribution} {plugin.version}\n")
        cls = plugin.load()
        print(_prose(cls))
        parser = ArgumentParser(usage=SUPPRESS, add_help=False)
        parser.add_class_arguments(cls, key, as_group=False)
        print(parser.format_help().strip() or "It has no options.")
    return 0


def _prose(cls: type) -> str:
    """The docstring down to its list of arguments, which are shown as options."""
    return (inspect.getdoc(cls) or "").partition("\nArgs:")[0].rstrip() + "\n"
