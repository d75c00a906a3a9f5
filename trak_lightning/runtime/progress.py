"""One progress bar per stage, on standard error, and only on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress(description: str, total: int, *, enabled: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a bar; the yielded function advances it by a number of items."""
    console = Console(stderr=True)
    if not (enabled and console.is_terminal):
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
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)
