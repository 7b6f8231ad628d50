"""Work away from the main thread, which only waits: Ctrl-C reaches the caller at once, whatever XLA is doing.

Python delivers signals to the main thread alone, and only between two of its instructions: not while XLA compiles
there, nor during a long step; and an interrupt that meets one of JAX's callbacks is lost, or ends the process. So
what takes long runs in a thread of its own, to which no signal comes. Nothing stops a compilation: its thread goes on
to the end of it, and ends itself at the next look at `check_interrupt`.
"""

import atexit
import contextvars
import functools
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NoReturn, TypeVar

import jax

Function = TypeVar("Function", bound=Callable[..., Any])

# A waiting thread looks up so often, in seconds: where signals do not end a wait by themselves.
LOOK = 0.1

INTERRUPTED = 130  # what shells call a process that Ctrl-C has ended

# JAX's settings of one thread, that a caller may have made: they hold in the threads that work for it, too.
_SETTINGS = (
    ("jax_default_device", "default_device"),
    ("jax_default_matmul_precision", "default_matmul_precision"),
    ("jax_debug_nans", "debug_nans"),
    ("jax_debug_infs", "debug_infs"),
    ("jax_disable_jit", "disable_jit"),
    ("jax_enable_x64", "enable_x64"),
    ("jax_log_compiles", "log_compiles"),
    ("jax_numpy_dtype_promotion", "numpy_dtype_promotion"),
    ("jax_numpy_rank_promotion", "numpy_rank_promotion"),
    ("jax_default_prng_impl", "default_prng_impl"),
)

_stopped: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("stopped", default=None)
_busy: set[threading.Thread] = set()


class Interrupted(BaseException):
    """Ends the work of a thread for which nobody waits any more; no caller sees it."""


def is_interrupted() -> bool:
    """Whether the caller of this thread was interrupted: nobody waits for its result."""
    stopped = _stopped.get()
    return stopped is not None and stopped.is_set()


def check_interrupt() -> None:
    """End the work of this thread where its caller was interrupted; called between the steps of what takes long.

    Raises:
        Interrupted: the caller was interrupted.
    """
    if is_interrupted():
        raise Interrupted


def interruptible(function: Function) -> Function:
    """A function that Ctrl-C leaves at once: called on the main thread it works in a thread of its own.

    What it computes is left to end by itself. In other threads, where no signal comes, the function is just called.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return function(*arguments, **named)
        stopped = threading.Event()
        try:
            with _noted_interrupts() as interrupts:
                result = wait(in_background(functools.partial(function, *arguments, **named), stopped))
            if interrupts:  # as the work ended
                raise KeyboardInterrupt
            return result
        except BaseException:
            stopped.set()
            raise

    return call  # pyright: ignore[reportReturnType]


def in_background(work: Callable[[], Any], stopped: threading.Event | None = None) -> Future:
    """Begin work in a thread of its own, with the caller's context and JAX settings; the process waits for its end.

    Args:
        work: the work.
        stopped: set when nobody waits for the work any more; None: as for the caller.
    """
    future: Future = Future()
    context = contextvars.copy_context()
    if stopped is not None:
        context.run(_stopped.set, stopped)
    settings = {name: getattr(jax.config, name) for name, _ in _SETTINGS}

    def body() -> None:
        try:
            with ExitStack() as entered:
                for name, setting in _SETTINGS:
                    if getattr(jax.config, name) != settings[name]:
                        entered.enter_context(getattr(jax, setting)(settings[name]))
                result = context.run(work)
        except BaseException as error:  # for whoever waits
            _busy.discard(thread)
            future.set_exception(error)
        else:
            _busy.discard(thread)
            future.set_result(result)

    thread = threading.Thread(target=body, name="saddleflow")
    _busy.add(thread)
    thread.start()
    return future


def wait(future: Future, timeout: float | None = None) -> Any:
    """The result of work in the background; a main thread can be interrupted while it waits.

    Raises:
        TimeoutError: not there after so many seconds; the work goes on.
        KeyboardInterrupt: Ctrl-C.
        Interrupted: the caller of this thread was interrupted.
    """
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    deadline = math.inf if timeout is None else time.perf_counter() + timeout
    with _noted_interrupts() as interrupts:
        while not done.wait(max(0.0, min(LOOK, deadline - time.perf_counter()))):
            check_interrupt()
            if interrupts:
                break
            if time.perf_counter() >= deadline:
                raise TimeoutError
        if interrupts:
            raise KeyboardInterrupt
    return future.result()


@contextmanager
def _noted_interrupts() -> Iterator[list[bool]]:
    """A list that is not empty after Ctrl-C, on a main thread whose signal handler is Python's own.

    That handler raises KeyboardInterrupt between any two instructions. In a callback (JAX has one in the garbage
    collector) Python prints it and goes on, and nobody is interrupted.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    if main and isinstance(handler, _Noted):  # a wait within a wait
        yield handler.interrupts
    elif main and handler is signal.default_int_handler:
        noted = _Noted()
        signal.signal(signal.SIGINT, noted)
        try:
            yield noted.interrupts
        finally:
            signal.signal(signal.SIGINT, handler)
    else:
        yield []


class _Noted:
    """A handler of signals that notes them."""

    def __init__(self):
        self.interrupts: list[bool] = []

    def __call__(self, *_: Any) -> None:
        self.interrupts.append(True)


def get(found: queue.SimpleQueue[Any]) -> Any:
    """The next item of a queue.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        Interrupted: the caller of this thread was interrupted.
    """
    while True:
        try:
            return found.get(timeout=LOOK)
        except queue.Empty:
            check_interrupt()


def leave(code: int) -> NoReturn:
    """End the process with an exit code; without the interpreter's cleaning where a thread is still at work.

    XLA would meet its end in the middle of a compilation, and take the process with it.
    """
    if _busy:
        _leave_at_once(code)
    sys.exit(code)


def leave_interrupted() -> NoReturn:
    """End the process as one that Ctrl-C has ended, whatever its threads are at."""
    _leave_at_once(INTERRUPTED)


def _leave_at_once(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or nobody reads it any more
            stream.flush()
    os._exit(code)


@atexit.register
def _leave_no_ruins() -> None:
    """At the interpreter's end, which waits for threads: one at work now means that Ctrl-C has ended that wait."""
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    if any(not thread.daemon for thread in others):
        leave_interrupted()
