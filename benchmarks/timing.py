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


def in_turn(*functions: Callable[[], Any], repeats: int) -> list[float]:
    """Least seconds of each function, called turn by turn: a shared machine is now fast and now slow."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, found in zip(functions, seconds, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(function())
            found.append(time.perf_counter() - begin)
    return [min(found) for found in seconds]
