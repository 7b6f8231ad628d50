"""How long a user waits: a first flow with nothing compiled, a second process, other sizes, deep networks.

Run: python benchmarks/waiting.py [--write]     (three minutes; --write puts the tables into docs/running.md)

Each row is a process of its own. Cold: an empty folder of compiled programs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from tables import markdown, write_below

import saddleflow as sf

CONSOLE = Console()
MARK = "<!-- below: written by benchmarks/waiting.py --write -->"
PAGE = Path(__file__).parent.parent / "docs" / "running.md"


def flow(
    depth: int = 4, width: int = 100, size: int = 10, gamma: float = 1.5, seed: int = 1, **options: Any
) -> float:
    """Seconds of the solver; a flow of matrix completion from a Gaussian start."""
    cost = sf.MatrixCompletion.random(jax.random.key(0), shape=(size, size), rank=1, observed=0.8)
    start = sf.gaussian(jax.random.key(seed), depth=depth, width=width, shape=cost.shape, gamma=gamma)
    run = sf.gradient_flow(cost, start, progress=False, **options)
    return run.stats["seconds"] - run.stats["compile_seconds"]


def measure(steps: list[dict[str, Any]]) -> None:
    """Flows one after another; of each the seconds, those of the solver and the programs compiled, as JSON."""
    compiled: list[str] = []

    def note(event: str, duration_secs: float, **data: Any) -> None:
        if event.endswith("/backend_compile_duration"):
            compiled.append(str(data.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(note)
    found = []
    for options in steps:
        compiled.clear()
        begin = time.perf_counter()
        solver = flow(**options)
        found.append((time.perf_counter() - begin, solver, len(compiled)))
    print(json.dumps(found))


def process(steps: list[dict[str, Any]], folder: str) -> list[tuple[float, float, int]]:
    """`measure` in a process of its own, with a folder of compiled programs."""
    call = [sys.executable, __file__, "--measure", json.dumps(steps)]
    environment = os.environ | {"SADDLEFLOW_CACHE": folder}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    run = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def first_and_later() -> list[list[str]]:
    """A first flow, then others that differ in one size each, in one process; and all of it in a second one."""
    steps: list[tuple[str, dict[str, Any]]] = [
        ("the first flow: L = 4, w = 100", {}),
        ("another seed", {"seed": 2}),
        ("w = 103", {"width": 103}),
        ("max_saves = 900", {"max_saves": 900}),
        ("60 times asked for", {"save_at": list(np.linspace(0, 100, 60))}),
        ("64 times", {"save_at": list(np.linspace(0, 100, 64))}),
        ("w = 200", {"width": 200}),
    ]
    with tempfile.TemporaryDirectory() as folder:
        cold, warm = (process([options for _, options in steps], folder) for _ in range(2))
    return [
        [name, f"{a[0]:.2f}", f"{a[1]:.2f}", f"{a[2]}", f"{b[0]:.2f}"]
        for (name, _), a, b in zip(steps, cold, warm, strict=True)
    ]


def deep() -> list[list[str]]:
    """Width-3 chains from small starts, cold, each in a process of its own."""
    rows = []
    for depth in (8, 32, 64, 128):
        with tempfile.TemporaryDirectory() as folder:
            options = {"depth": depth, "width": 3, "size": 2, "gamma": 1.0, "max_steps": 300, "graded": True}
            ((seconds, solver, programs),) = process([options], folder)
        rows.append([f"L = {depth}", f"{seconds:.1f}", f"{solver:.2f}", f"{programs}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(json.loads(arguments.measure))
        return
    sizes = markdown(
        ["one after another", "seconds, cold", "of the solver", "programs compiled", "seconds, second process"],
        first_and_later(),
    )
    depths = markdown(["w = 3, 300 steps at most", "seconds, cold", "of the solver", "programs compiled"], deep())
    CONSOLE.print(sizes, depths, sep="\n\n")
    if arguments.write:
        write_below(MARK, PAGE, "Running", [f"On {os.cpu_count()} cores, jax {jax.__version__}.", sizes, depths])


if __name__ == "__main__":
    main()
