"""Progress meters: one line that moves, on terminals and in notebooks; or a line now and then, for logs."""

import abc
import contextvars
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
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

# Seconds between two pictures of a moving line; of one in a notebook, and to the first of them.
REFRESH, NOTEBOOK_EVERY, NOTEBOOK_FIRST = 0.1, 0.5, 1.0

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
        shown: Any = _Lines(total, unit, description, LOG_FIRST, LOG_EVERY)
    elif progress and console.is_jupyter:
        shown = _NotebookLine(total, unit, description, NOTEBOOK_FIRST, NOTEBOOK_EVERY)
    elif progress and console.is_terminal:
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


class _Texts(abc.ABC):
    """A text now and then, with the seconds since the beginning."""

    def __init__(self, total: int | None, unit: str, description: str, first: float, every: float):
        self.line: Any = nullcontext()
        self._total, self._unit, self._latest = total, unit, description
        self._begin, self._every = time.perf_counter(), every
        self._due, self._lock = self._begin + first, threading.Lock()

    def report(self, text: Callable[[], str], done: int) -> None:
        """Take a new text, and show it where one is due."""
        with self._lock:
            count = "" if self._total is None else f"{done} of {self._total} {self._unit}   "
            self._latest = count + text()
            self._show_if_due()

    def tick(self) -> None:
        """Show the latest text where one is due."""
        with self._lock:
            self._show_if_due()

    def close(self) -> None:
        """Show nothing more."""
        self._due = math.inf

    def _show_if_due(self) -> None:
        now = time.perf_counter()
        if now >= self._due:
            self._due = now + self._every
            self._show(f"{self._latest}   {now - self._begin:.0f} s")

    @abc.abstractmethod
    def _show(self, line: str) -> None: ...


class _NotebookLine(_Texts):
    """A line below a cell, which changes in place. Rich would need ipywidgets, and warn where they are missing."""

    def __init__(self, *how: Any):
        super().__init__(*how)
        self._handle: Any = None
        self.line = ExitStack()
        self.line.callback(self._clear)

    def _show(self, line: str) -> None:
        from IPython.display import display  # which a notebook has

        if self._handle is None:
            self._handle = display({"text/plain": line}, raw=True, display_id=True)
        else:
            self._handle.update({"text/plain": line}, raw=True)

    def _clear(self) -> None:
        if self._handle is not None:
            self._handle.update({"text/plain": "", "text/html": ""}, raw=True)  # pages show no empty box


class _Lines(_Texts):
    """Lines for a log."""

    def _show(self, line: str) -> None:
        if LOGGER.hasHandlers():
            LOGGER.info(line)
        else:
            print(f"saddleflow: {line}", file=sys.stderr, flush=True)
