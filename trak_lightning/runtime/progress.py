"""One progress bar per stage, on standard error, and only on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress(description: str, total: int, *, enabled: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a bar; the yielded function advances it by a number of items."""
    console = Console(stderr=True)
    if not (enabled and total and console.is_terminal):
        yield lambda count: None  # a disabled rich bar still prints empty lines
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    # Text that is printed meanwhile stands above the bar, and goes to standard output if that is not a terminal.
    redirect = sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=redirect) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)
