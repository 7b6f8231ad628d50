"""Compiled programs kept on disk, for the next process."""

import os
from pathlib import Path

import jax

from saddleflow.checks import require_positive


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
