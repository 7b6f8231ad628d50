"""Progress meters: one line that moves, on terminals and in notebooks; or a line now and then, for logs."""

import contextvars
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from saddleflow._backend.arguments import scalar
from saddleflow._backend.checks import require
from saddleflow._backend.waiting import is_interrupted

# What a long work calls to say how it stands: a function that makes the text, called only where it is shown, and
# how many of its units are done.
Report = Callable[[Callable[[], str], int], None]

# Whether this work is a part of another that has a meter: that one tells how it stands.
_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("inside", default=False)

# Seconds between two lines of a log, and to the first of them: what ends before needs none.
LOG_EVERY, LOG_FIRST = 5.0, 1.0

# Seconds between two pictures of a moving line.
REFRESH = 0.1

LOGGER = logging.getLogger("saddleflow")


def check_progress(progress: Any) -> None:
    """Refuse anything but True, False and "log"."""
    sound = isinstance(progress, bool) or (isinstance(progress, str) and progress == "log")
    require(
        sound, "progress", 'be True, False or "log"', progress, "True shows a meter on terminals and in notebooks."
    )


def progress(argument: str, value: Any) -> bool | str:
    """The reader of an argument `progress`."""
    del argument
    found = scalar(value)
    check_progress(found)
    return found


@contextmanager
def meter(
    progress: bool | str, *, total: int | None = None, unit: str = "", description: str = "compiling"
) -> Iterator[Report]:
    """A meter, gone at the end; the report may be called from several threads.

    Within the work of another meter it shows nothing.

    Args:
        progress: True: one line that moves, on terminals and in notebooks only. "log": a line every `LOG_EVERY`
            seconds to the logger "saddleflow", level INFO, or to stderr where no logging was set up. False: nothing.
        total: units of work, for a bar; None: a spinner.
        unit: what is counted, in the plural.
        description: the text before the first report.

    Yields:
        The function `report(text, done)`; `done` counts where there is a total.

    Raises:
        ValueError: another `progress`.
    """
    check_progress(progress)
    shown = False if _inside.get() else progress
    outside = _inside.set(True)
    try:
        with _shown(shown, total, unit, description) as report:
            yield report
    finally:
        _inside.reset(outside)


@contextmanager
def _shown(progress: bool | str, total: int | None, unit: str, description: str) -> Iterator[Report]:
    console = Console(stderr=True)
    if progress == "log":
        shown: Any = _Lines(total, unit, description)
    elif progress and (console.is_terminal or console.is_jupyter):
        shown = _MovingLine(console, total, unit, description)
    else:
        yield lambda text, done: None
        return
    ended = threading.Event()
    ticker = threading.Thread(target=contextvars.copy_context().run, args=(_tick, shown, ended), daemon=True)
    with shown.line:
        ticker.start()
        try:
            yield shown.report
        finally:
            ended.set()
            ticker.join()


def _tick(shown: Any, ended: threading.Event) -> None:
    """Have a meter move by itself until its work has ended, or has been left to end alone."""
    while not ended.wait(REFRESH):
        if is_interrupted():
            shown.close()
            return
        shown.tick()


class _MovingLine:
    """A line of rich's, drawn again and again."""

    def __init__(self, console: Console, total: int | None, unit: str, description: str):
        columns = [TextColumn("{task.description}"), TimeElapsedColumn()]
        if total is None:
            columns.insert(0, SpinnerColumn())
        else:
            columns[1:1] = [BarColumn(), MofNCompleteColumn(), TextColumn(unit)]
        self.line = Progress(*columns, console=console, transient=True, auto_refresh=False)
        self._task, self._lock = self.line.add_task(description, total=total), threading.Lock()
        self.tick, self.close = self.line.refresh, self.line.stop

    def report(self, text: Callable[[], str], done: int) -> None:
        """Take a new text."""
        with self._lock:
            self.line.update(self._task, description=text(), completed=done)


class _Lines:
    """Lines for a log, with the seconds since the beginning."""

    def __init__(self, total: int | None, unit: str, description: str):
        self.line = nullcontext()
        self._total, self._unit, self._latest = total, unit, description
        self._begin = time.perf_counter()
        self._due, self._lock = self._begin + LOG_FIRST, threading.Lock()

    def report(self, text: Callable[[], str], done: int) -> None:
        """Take a new text, and print it where a line is due."""
        with self._lock:
            count = "" if self._total is None else f"{done} of {self._total} {self._unit}   "
            self._latest = count + text()
            self._print_if_due()

    def tick(self) -> None:
        """Print the latest text where a line is due."""
        with self._lock:
            self._print_if_due()

    def close(self) -> None:
        """Nothing is left to clean up."""

    def _print_if_due(self) -> None:
        now = time.perf_counter()
        if now < self._due:
            return
        self._due = now + LOG_EVERY
        line = f"{self._latest}   {now - self._begin:.0f} s"
        if LOGGER.hasHandlers():
            LOGGER.info(line)
        else:
            print(f"saddleflow: {line}", file=sys.stderr, flush=True)
