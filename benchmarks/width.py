"""The width reduction: seconds and memory against the width, beside the full flow; its error and its estimate.

Run: python benchmarks/width.py            (widths 10^3 and 10^6, each in a process of its own)
     python benchmarks/width.py full       (the full flow at w = 1000 beside them: many minutes)
     python benchmarks/width.py estimate   (error, estimate and bases over depths, gammas and tolerances: hours)
"""

import itertools
import json
import resource
import subprocess
import sys
import time

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import saddleflow as sf

DEPTH, SHAPE, GAMMA, TOLERANCE, SEEDS = 4, (10, 10), 1.0, 1e-5, 10

# The largest |A|_F of the flows whose errors are estimated: tolerances are in the units of A there.
LARGEST = 5.8


def main() -> None:
    mode = sys.argv[1] if len(sys.argv) > 1 else "width"
    if mode == "row":
        print(json.dumps(row(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    elif mode == "estimate":
        estimates()
    else:
        costs(mode == "full")


def costs(with_full: bool) -> None:
    title = (
        f"L = {DEPTH}, {SHAPE[0]}x{SHAPE[1]}, gamma = {GAMMA:g}, tolerance {TOLERANCE:g}: growth and check included"
    )
    table = Table(title=title)
    names = ("network", "width", "seeds", "bases", "first (CPU s)", "a later one (CPU s)", "peak memory (GB)")
    for name in names:
        table.add_column(name, justify="right")
    cases = [("drawn in law", 10**3, SEEDS), ("drawn in law", 10**6, SEEDS), ("projected", 10**3, SEEDS)]
    for kind, width, seeds in cases + ([("full", 10**3, 2)] if with_full else []):
        arguments = [sys.executable, __file__, "row", kind, str(width), str(seeds)]
        run = subprocess.run(arguments, capture_output=True, text=True, check=True)
        result = json.loads(run.stdout.splitlines()[-1])
        table.add_row(
            kind,
            f"{width:,}",
            str(seeds),
            result["bases"],
            f"{result['first']:.1f}",
            f"{result['later']:.2f}",
            f"{result['memory']:.2f}",
        )
    Console(width=140).print(table)


def row(kind: str, width: int, seeds: int) -> dict:
    """Runs to t = 5: processor seconds (machines are shared) and memory of this process."""
    cost = sf.MatrixCompletion.random(jax.random.key(3), shape=SHAPE)
    seconds, bases = [], ""
    for seed in range(seeds):
        begin = time.process_time()
        arguments = {"depth": DEPTH, "width": width, "shape": SHAPE, "gamma": GAMMA}
        if kind == "drawn in law":
            start = sf.sample_reduced(jax.random.key(seed), **arguments, tolerance=TOLERANCE)
        else:
            start = sf.gaussian(jax.random.key(seed), **arguments)
            start = sf.reduce_width(start, TOLERANCE) if kind == "projected" else start
        # what the reduced runs are solved to
        run = sf.gradient_flow(cost, start, rtol=1e-7, t1=5.0)
        seconds.append(time.process_time() - begin)
        bases = str(run.configuration.get("reduced_widths", ""))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"bases": bases, "first": seconds[0], "later": float(np.median(seconds[1:])), "memory": memory}


def estimates() -> None:
    print("projected, matrix completion 5x5: sup over time of |A - A_full|")
    print("L | gamma | width | tolerance | bases | error | estimate | estimate / error | time shift")
    grid = itertools.product((2, 3, 4, 5), (0.75, 1.0, 1.5, 2.0), (100, 400), (1e-3, 1e-5, 1e-8))
    for depth, gamma, width, tolerance in grid:
        print(*estimate(depth, gamma, width, tolerance), sep=" | ", flush=True)


def estimate(depth: int, gamma: float, width: int, tolerance: float) -> list[str]:
    cost = sf.MatrixCompletion.random(jax.random.key(3), shape=(5, 5))
    network = sf.gaussian(jax.random.key(4), depth=depth, width=width, shape=(5, 5), gamma=gamma)
    run = sf.gradient_flow(cost, sf.reduce_width(network, tolerance / LARGEST), rtol=1e-6)
    rows = np.unique(np.linspace(0, len(run.time) - 1, 150).astype(int))
    full = sf.gradient_flow(cost, network, rtol=max(1e-12, 1e-5 * tolerance), save_at=run.time[rows])
    error = np.linalg.norm(full.end_to_end - run.end_to_end[rows], axis=(1, 2)).max()
    found = run.reduction_error_estimate
    assert found is not None
    assert run.reduced is not None
    return [
        f"{depth}",
        f"{gamma:g}",
        f"{width}",
        f"{tolerance:.0e}",
        str(run.reduced.reduced_widths),
        f"{error:.1e}",
        f"{found:.1e}",
        f"{found / error:.2f}",
        f"{run.stats['reduction_time_shift']:.1e}",
    ]


if __name__ == "__main__":
    main()
