"""Progress meters: one line on terminals and in notebooks, nothing elsewhere."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

# What a long work calls to say how it stands: a function that makes the text, called only where a meter is shown, and
# how many of its units are done.
Report = Callable[[Callable[[], str], int], None]


@contextmanager
def meter(
    show: bool, *, total: int | None = None, unit: str = "", description: str = "compiling"
) -> Iterator[Report]:
    """A one-line meter, gone at the end; the report may be called from several threads.

    Args:
        show: whether a meter is wanted; it is shown on terminals and in notebooks only.
        total: units of work, for a bar; None: a spinner.
        unit: what is counted, in the plural.
        description: the text before the first report.

    Yields:
        The function `report(text, done)`; `done` counts for a bar only.
    """
    console = Console(stderr=True)
    if not (show and (console.is_terminal or console.is_jupyter)):
        yield lambda text, done: None
        return
    columns = [TextColumn("{task.description}"), TimeElapsedColumn()]
    if total is None:
        columns.insert(0, SpinnerColumn())
    else:
        columns[1:1] = [BarColumn(), MofNCompleteColumn(), TextColumn(unit)]
    with Progress(*columns, console=console, transient=True) as bar:
        task, lock = bar.add_task(description, total=total), threading.Lock()

        def report(text: Callable[[], str], done: int) -> None:
            with lock:
                bar.update(task, description=text(), completed=done)

        yield report
