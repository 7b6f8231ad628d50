"""Shared by the benchmarks: fair timing of compiled functions."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def timed(function: Callable[..., Any], *arguments: Any, repeats: int = 5) -> tuple[float, float]:
    """Seconds of the first call (compilation and run) and the median seconds of later ones, results awaited."""
    begin = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    first = time.perf_counter() - begin
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - begin)
    return first, statistics.median(seconds)
