"""Compiled programs: how they are compiled, in how much memory, and how they are kept for the next process."""

import ctypes
import gc
import os
import threading
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from saddleflow._backend.checks import require_positive

# XLA's newer code generator for CPUs takes a third longer to compile the program of a flow, which then runs no
# faster, and .35 GB more memory (by hand, L = 4, w = 128, jaxlib 0.10.2). Later versions know no such option.
CPU_OPTIONS = {"xla_cpu_use_fusion_emitters": False}

# Compilations that took so many seconds leave enough behind to be worth the milliseconds of a trim.
WORTH_TRIMMING = 0.1

# Of the memory maps that Linux allows a process (65,530 as a rule), the share that compiled programs may fill.
# Beyond the limit XLA's compiler ends the process.
MAPS_SHARE = 0.5

_C_LIBRARY = ctypes.CDLL(None) if os.name == "posix" else None


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`equinox.filter_jit` for large programs, which are never part of another one.

    Nothing happens before the first call: neither is a backend started nor a listener registered.
    """
    return _Compiled(function)


class _Compiled:
    """A function jitted at its first call, with the options that the running JAX knows."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    @cached_property
    def program(self) -> Any:
        """The jitted function."""
        _listen()
        return eqx.filter_jit(self._function, **compiler_options())

    def __call__(self, *arguments: Any) -> Any:
        return self.program(*arguments)


@cache
def compiler_options() -> dict[str, Any]:
    """Options of `jax.jit` for the large programs: on CPUs `CPU_OPTIONS`, where the running version has them."""
    if jax.default_backend() != "cpu":
        return {}
    options: dict[str, Any] = {"compiler_options": CPU_OPTIONS}
    try:
        jax.jit(lambda: 0, **options)()
    except Exception:  # of what kind differs from version to version
        return {}
    return options


def cache_programs(folder: str | Path | None = None, *, min_seconds: float = 0.3) -> Path:
    """Keep compiled programs in a folder, so that another process need not compile them again.

    A flow often takes longer to compile than to run. JAX keys its cache by program, versions and
    machine. The command line calls this; in Python it is yours to call, before the first flow, since it sets JAX's
    configuration for the whole process. A folder that is configured already (`JAX_COMPILATION_CACHE_DIR`) is kept.
    Programs with a check at run time, such as a `Rosenbrock()` that tests for symmetry, are not kept by JAX.

    Args:
        folder: default: `saddleflow` in `XDG_CACHE_HOME` or `~/.cache`.
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
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "saddleflow" if folder is None else Path(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", min_seconds)
    return folder


_MAPS, _MAPS_LIMIT = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
_compiled_lately = threading.Event()


def make_room() -> None:
    """Drop all compiled programs where their memory maps come near what the system allows: many shapes, one process.

    Those still needed are compiled again. Linux only: other systems have no such limit.
    """
    if _compiled_lately.is_set() and _MAPS.exists() and _MAPS_LIMIT.exists():
        _compiled_lately.clear()
        with _MAPS.open("rb") as maps:
            count = sum(1 for _ in maps)
        if count > MAPS_SHARE * int(_MAPS_LIMIT.read_text()):
            jax.clear_caches()
            gc.collect()


def _trim(event: str, duration_secs: float, **_: Any) -> None:
    """Hand the memory that a compilation has used and freed back to the system: .4 GB for a flow's program.

    glibc keeps it, in pieces that the next compilation does not fit into. Other C libraries have no such function.
    """
    if event.endswith("/backend_compile_duration") and duration_secs > WORTH_TRIMMING:
        _compiled_lately.set()
        trim = getattr(_C_LIBRARY, "malloc_trim", None)
        if trim is not None:
            trim(0)


@cache
def _listen() -> None:
    """Have `_trim` called after every compilation from now on."""
    jax.monitoring.register_event_duration_secs_listener(_trim)
