"""Threads: tasks that yield results as they come, and what a run of them has come to."""

import contextvars
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from typing import Any

from saddleflow._backend.waiting import get
from saddleflow.flow.state import StopReason

# A task gives results one by one, and ends early once the event is set.
Task = Callable[[threading.Event], Iterable[Any]]


@dataclass(frozen=True)
class Tally:
    """What a run has come to: lanes done, those of them that failed, lane-steps computed and useful."""

    done: int = 0
    failed: int = 0
    useful: float = 0.0
    computed: float = 0.0

    FAILURES = (StopReason.step_size_underflow, StopReason.non_finite, StopReason.max_steps, StopReason.not_smooth)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        return f"{self.failed} failed, {self.useful:.0f} steps"

    @property
    def utilisation(self) -> float:
        """Useful lane-steps over all that were computed; 1 where none was."""
        return self.useful / self.computed if self.computed else 1.0


# Told what a burst or a lane adds to the tally, from several threads.
Report = Callable[[Tally], None]


def in_threads(tasks: Sequence[Task], num_threads: int) -> Iterator[Any]:
    """Run tasks in threads, in their order; close the iterator to stop them.

    Args:
        tasks: the tasks.
        num_threads: how many run at once.

    Yields:
        What the tasks yield, as it comes.

    Raises:
        BaseException: the first error of a task, once the running tasks have stopped: they may be compiling.
    """
    if not tasks:
        return
    # what programs take from these is loaded in one thread: two that load parts of a library at once may see half
    import jax.scipy.linalg  # noqa: F401
    import scipy.linalg  # noqa: F401

    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stopped = threading.Event()
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="lanes")

    def work(task: Task) -> None:
        for item in task(stopped):
            found.put(item)

    def stop() -> None:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)

    try:
        for task in tasks:
            pool.submit(contextvars.copy_context().run, work, task).add_done_callback(found.put)
        unfinished, error = len(tasks), None
        while unfinished:
            item = get(found)
            if not isinstance(item, Future):
                yield item
                continue
            unfinished -= 1
            if error is None and not item.cancelled() and item.exception() is not None:
                error = item.exception()
                stop()
        if error is not None:
            raise error
    finally:
        stop()
