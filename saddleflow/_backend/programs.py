"""Compiled programs: how they are compiled, in how much memory, and how they are kept for the next process."""

import contextvars
import ctypes
import functools
import gc
import os
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from saddleflow._backend.arguments import number, optional, path, takes
from saddleflow._backend.checks import is_concrete, require_positive
from saddleflow._backend.waiting import in_background, wait

# XLA's newer code generator for CPUs takes a third longer to compile the program of a flow, which then runs no
# faster, and .35 GB more memory (by hand, L = 4, w = 128, jaxlib 0.10.2). Later versions know no such option.
CPU_OPTIONS = {"xla_cpu_use_fusion_emitters": False}

# The start of a flow compiles in .2 s in place of .5 s; a step would, too, and then take twice as long.
IN_A_HURRY = {"xla_backend_optimization_level": 0}

# Programs that compile faster than this are not kept: they are compiled as fast as they are found. JAX's own number
# is a second.
MIN_SECONDS, JAX_MIN_SECONDS = 0.005, 1.0

# Bytes of programs kept; one takes .1 MB.
MAX_CACHE = 500_000_000

# An empty entry that is older than so many seconds is left from a killed process.
BEING_WRITTEN = 60.0

# Compilations that took so many seconds leave enough behind to be worth the milliseconds of a trim.
WORTH_TRIMMING = 0.1

# Of the memory maps that Linux allows a process (65,530 as a rule), the share that compiled programs may fill.
# Beyond the limit XLA's compiler ends the process.
MAPS_SHARE = 0.5

_C_LIBRARY = ctypes.CDLL(None) if os.name == "posix" else None


def compiled(function: Callable[..., Any], *, runs_once: bool = False, donates: bool = False) -> "Compiled":
    """`equinox.filter_jit` with options of our own.

    Nothing happens before the first call: neither is a backend started nor a listener registered.

    Args:
        function: as of `equinox.filter_jit`; positional arguments only.
        runs_once: the program runs once or twice: on CPUs it is compiled in a hurry, which takes a third of the time
            and changes results by rounding. As part of another program it is compiled as that is. Without this
            choice a program is never part of another one.
        donates: the arrays of all arguments but the first are the program's to write its results to, and gone after
            the call; none of them may be there twice, or belong to anybody else.
    """
    return Compiled(function, runs_once, donates)


class Compiled:
    """A function jitted at its first call, with the options that the running JAX knows."""

    def __init__(self, function: Callable[..., Any], runs_once: bool, donates: bool = False):
        functools.update_wrapper(self, function)
        self._function, self._runs_once, self._donates = function, runs_once, donates
        self._in_progress: dict[Hashable, Future] = {}

    @cached_property
    def program(self) -> Any:
        """The jitted function."""
        keep_programs()
        _listen()
        options = dict(compiler_options(self._runs_once))
        if self._donates:
            options["donate"] = "all-except-first"
        return eqx.filter_jit(self._function, **options)

    @cached_property
    def _part(self) -> Any:
        return eqx.filter_jit(self._function)

    def __call__(self, *arguments: Any) -> Any:
        if self._runs_once and not all(map(is_concrete, jax.tree.leaves(arguments))):
            return self._part(*arguments)
        if self._in_progress:  # rather than to compile the same again
            self.is_there(None, *arguments)
        return self.program(*arguments)

    def is_there(self, deadline: float | None, *arguments: Any) -> bool:
        """Compile the program for arguments, by a time of `time.perf_counter`; whether that was enough.

        Where it was not, the compilation goes on in the background, and the next call waits for it.
        """
        key = _kind(arguments)
        future = self._in_progress.get(key)
        if future is None:
            if deadline is None:
                return True  # the call compiles it
            future = in_background(lambda: self.program.lower(*arguments).compile())
            self._in_progress[key] = future
            future.add_done_callback(lambda _: self._in_progress.pop(key, None))
        begin, watch = time.perf_counter(), _watch.get()
        try:
            wait(future, None if deadline is None else deadline - begin)
        except TimeoutError:
            return False
        finally:
            if watch is not None:
                watch.add(time.perf_counter() - begin)
        return True


def _kind(arguments: Any) -> Hashable:
    """Equal for arguments that one compiled program can serve."""
    leaves, structure = jax.tree.flatten(arguments)
    kinds = [(leaf.shape, str(leaf.dtype)) if eqx.is_array(leaf) else leaf for leaf in leaves]
    return structure, tuple(kinds)


@cache
def compiler_options(runs_once: bool = False) -> dict[str, Any]:
    """Options of `jax.jit` for our programs: on CPUs `CPU_OPTIONS`, where the running version has them."""
    if jax.default_backend() != "cpu":
        return {}
    options: dict[str, Any] = {"compiler_options": CPU_OPTIONS | (IN_A_HURRY if runs_once else {})}
    try:
        jax.jit(lambda: 0, **options)()
    except Exception:  # of what kind differs from version to version
        return {}
    return options


class Stopwatch:
    """`with Stopwatch() as spent:` measures what work takes: `seconds` in all, and `compile_seconds` of them.

    Those are spent on tracing, lowering and compiling programs, or on reading them from the cache, by this thread and
    those that work for it.
    """

    seconds = 0.0

    def __enter__(self):
        _listen()
        self._spans: list[tuple[float, float]] = []
        self._lock = threading.Lock()
        self._token = _watch.set(self)
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *_: Any):
        self.seconds = time.perf_counter() - self._begin
        _watch.reset(self._token)

    def add(self, duration: float) -> None:
        """Take a span that ends now; one that lies in a later one (a jit in a jit) does not count twice."""
        with self._lock:
            end = time.perf_counter()
            begin = max(end - duration, self._begin)
            while self._spans and self._spans[-1][0] >= begin:
                self._spans.pop()
            if self._spans:
                begin = max(begin, self._spans[-1][1])
            self._spans.append((begin, end))

    @property
    def compile_seconds(self) -> float:
        """Seconds spent on compiling, so far."""
        with self._lock:
            return sum((end - begin for begin, end in self._spans), 0.0)


_watch: contextvars.ContextVar[Stopwatch | None] = contextvars.ContextVar("watch", default=None)


@takes(folder=optional(path), min_seconds=number(example="0.1"))
def cache_programs(folder: str | Path | None = None, *, min_seconds: float = MIN_SECONDS) -> Path:
    """Choose the folder of compiled programs, in place of `~/.cache/saddleflow`.

    A flow often takes longer to compile than to run. So saddleflow keeps the programs of the process, and other
    processes find them there: from its first program on, in the folder `saddleflow` of `XDG_CACHE_HOME` or
    `~/.cache`, the least recently used ones of `MAX_CACHE` bytes. The environment variable `SADDLEFLOW_CACHE` names
    another folder, or switches this off with the value `off`. Where JAX has been told what to keep
    (`jax_compilation_cache_dir`, `JAX_COMPILATION_CACHE_DIR`, `JAX_ENABLE_COMPILATION_CACHE`) nothing is changed.

    JAX keys its cache by program, versions and machine. Programs with a check at run time, such as a `Rosenbrock()`
    that tests for symmetry, are not kept by JAX. Whoever may write to the folder may run code in your processes.

    At the start of a script::

        sf.cache_programs("/scratch/me/programs")

    Args:
        folder: the folder; made if need be, and never pruned. None: what is configured, or the default.
        min_seconds: programs that compile faster are not kept.

    Returns:
        The folder in use.

    Raises:
        ValueError: `min_seconds` not positive.
    """
    require_positive("min_seconds", min_seconds)
    configured = jax.config.values["jax_compilation_cache_dir"]
    if folder is None and configured:
        return Path(configured)
    folder = _default_folder() if folder is None else Path(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", min_seconds)
    return folder


def _default_folder() -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "saddleflow"


@cache
def keep_programs() -> None:
    """Have JAX keep compiled programs, as `cache_programs` tells, unless it was told otherwise; once a process."""
    asked = os.environ.get("SADDLEFLOW_CACHE", "")
    known = jax.config.values
    if asked.lower() == "off" or known["jax_compilation_cache_dir"] or not known["jax_enable_compilation_cache"]:
        return
    try:
        folder = Path(asked) if asked else _default_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except (OSError, RuntimeError):  # no home, or none to write to
        return
    if not writable:
        return
    _prune(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # a number that was set is kept
    if known["jax_persistent_cache_min_compile_time_secs"] == JAX_MIN_SECONDS:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


def _prune(folder: Path, most: int = MAX_CACHE) -> None:
    """Remove the least recently used programs where all take more than `most` bytes, until a fifth is free.

    JAX can prune, too (`jax_compilation_cache_max_size`), at the price of another package and of a lock for every
    program read; and one entry that a killed process has left half written stops all writing.
    """
    with suppress(OSError), os.scandir(folder) as found:
        entries = [(entry, entry.stat()) for entry in found if entry.name.endswith("-cache")]
        for entry, stat in entries:
            if stat.st_size == 0 and time.time() - stat.st_mtime > BEING_WRITTEN:  # JAX would warn of it for ever
                with suppress(OSError):
                    os.unlink(entry.path)
        total = sum(stat.st_size for _, stat in entries)
        if total <= most:
            return
        for entry, stat in sorted(entries, key=lambda one: max(one[1].st_atime, one[1].st_mtime)):
            with suppress(OSError):  # another process was faster
                os.unlink(entry.path)
            total -= stat.st_size
            if total <= 0.8 * most:
                return


_MAPS, _MAPS_LIMIT = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
_compiled_lately = threading.Event()


def make_room() -> None:
    """Drop all compiled programs where their memory maps come near what the system allows: many shapes, one process.

    Those still needed are compiled again. Linux only: other systems have no such limit. Called before flows, so that
    their small programs are kept as the large ones are.
    """
    keep_programs()
    if _compiled_lately.is_set() and _MAPS.exists() and _MAPS_LIMIT.exists():
        _compiled_lately.clear()
        with _MAPS.open("rb") as maps:
            count = sum(1 for _ in maps)
        if count > MAPS_SHARE * int(_MAPS_LIMIT.read_text()):
            jax.clear_caches()
            gc.collect()


def _hear(event: str, duration_secs: float, **_: Any) -> None:
    """What every compilation calls: it counts for the stopwatch, and leaves memory behind."""
    if not event.startswith("/jax/core/compile/"):
        return
    watch = _watch.get()
    if watch is not None:
        watch.add(duration_secs)
    if event.endswith("/backend_compile_duration") and duration_secs > WORTH_TRIMMING:
        _compiled_lately.set()
        _trim()


def _trim() -> None:
    """Hand the memory that a compilation has used and freed back to the system: .4 GB for a flow's program.

    glibc keeps it, in pieces that the next compilation does not fit into. Other C libraries have no such function.
    """
    trim = getattr(_C_LIBRARY, "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def _listen() -> None:
    """Have `_hear` called after every compilation from now on."""
    jax.monitoring.register_event_duration_secs_listener(_hear)
