"""trak plugins."""

import inspect
from argparse import SUPPRESS
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from trak_lightning import registry
from trak_lightning.errors import PluginError


def plugins(argv: Sequence[str]) -> int:
    """``trak plugins [NAME]``: exit status 1 if some plug-in is broken."""
    parser = ArgumentParser(
        prog="trak plugins",
        description="List every plug-in that is installed, and what is broken; or show one and its options.",
    )
    parser.add_argument("name", nargs="?", type=str | None, default=None, help="a plug-in to show")
    name = parser.parse_args(list(argv)).name
    return _list() if name is None else _show(name)


def _list() -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for heading in ("kind", "name", "distribution", "state"):
        table.add_column(heading, overflow="fold")
    faults = [f"{unreadable.distribution}: {unreadable.reason}" for unreadable in registry.scan()[1]]
    for kind in registry.BASES:
        for plugin, error in registry.diagnose(kind):
            state = "broken" if error else "ok"
            table.add_row(kind.removesuffix("s"), plugin.name, f"{plugin.distribution} {plugin.version}", state)
            faults += [str(error)] if error else []
    console = Console()
    console.print(table)
    for fault in faults:
        console.print(f"broken: {fault}", style="red", markup=False, highlight=False)
    return 1 if faults else 0


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
