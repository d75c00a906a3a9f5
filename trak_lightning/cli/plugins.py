"""trak plugins."""

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from trak_lightning import registry


def plugins(argv: Sequence[str]) -> int:
    """``trak plugins``: exit status 1 if some plug-in is broken."""
    from rich.console import Console
    from rich.table import Table

    parser = ArgumentParser(
        prog="trak plugins", description="List every plug-in that is installed, and what is broken."
    )
    parser.parse_args(list(argv))
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
