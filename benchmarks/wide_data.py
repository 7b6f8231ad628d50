"""Fewer samples than dimensions in a very wide network: seconds, memory and risk of one exact reduced flow.

Run: python benchmarks/wide_data.py           (half a minute)
     python benchmarks/wide_data.py --quick   (small sizes, for a check that it runs)

Regression of 100 samples in 1000 dimensions, through hidden layers of width 10,030 with the identity between them.
The flow uses 103 directions of each hidden space. Its end is held against the least-norm solution Y X^+, which it
tends to as the start does to zero.
"""

import argparse
import resource
import time
from typing import Any

import jax
import numpy as np
import scipy
from rich.console import Console

import saddleflow as sf

FULL: dict[str, Any] = {"num_samples": 100, "n_in": 1000, "width": 10_030}
QUICK: dict[str, Any] = {"num_samples": 10, "n_in": 60, "width": 300}


def measure(
    num_samples: int = 100,
    n_in: int = 1000,
    width: int = 10_030,
    n_out: int = 3,
    scale: float = 0.03,
    noise: float = 0.1,
    num_later: int = 3,
    seed: int = 0,
) -> dict[str, float]:
    """The flow of one regression, reduction included.

    Args:
        num_samples: n, below n_in.
        n_in: number of dimensions of the inputs.
        width: of both hidden spaces.
        n_out: number of outputs.
        scale: the entries of the outer layers have standard deviation scale / sqrt(width).
        noise: of the outputs, whose teacher's rows have norm one.
        num_later: runs after the first, whose median is the time of a warm one.
        seed: of the task and the start.

    Returns:
        first_seconds (with compilation, or its cache), seconds (of a later run), reduce_seconds (the reduction's
        share of it), memory_gb (peak of this process after the first run: imports, data and layers included),
        num_steps, directions (of a hidden space), train_cost, risk (the test cost), least_norm_risk (that of Y X^+)
        and distance (of the end from Y X^+, as a share of that).
    """
    generator = np.random.default_rng(seed)
    teacher = generator.standard_normal((n_out, n_in)) / np.sqrt(n_in)
    inputs, test_inputs = generator.standard_normal((n_in, num_samples)), generator.standard_normal((n_in, 1000))
    outputs, test_outputs = (
        teacher @ x + noise * generator.standard_normal((n_out, x.shape[1])) for x in (inputs, test_inputs)
    )
    cost = sf.MeanSquaredError(inputs, outputs, test_inputs, test_outputs)
    first = scale / np.sqrt(width) * generator.standard_normal((width, n_in))
    last = scale / np.sqrt(width) * generator.standard_normal((n_out, width))
    seconds, reducing, memory = [], [], 0.0
    for index in range(1 + num_later):
        begin = time.perf_counter()
        small = sf.reduce_width([first, scipy.sparse.eye_array(width), last], cost=cost)
        reducing.append(time.perf_counter() - begin)
        run = sf.gradient_flow(cost, small, progress=False)
        seconds.append(time.perf_counter() - begin)
        if index == 0:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    least = outputs @ np.linalg.pinv(inputs)
    assert run.test_cost is not None
    return {
        "first_seconds": seconds[0],
        "seconds": float(np.median(seconds[1:])),
        "reduce_seconds": float(np.median(reducing[1:])),
        "memory_gb": memory,
        "num_steps": run.stats["num_steps"],
        "directions": max(small.reduced_widths),
        "train_cost": float(run.train_cost[-1]),
        "risk": float(run.test_cost[-1]),
        "least_norm_risk": float(cost.test(least)),
        "distance": float(np.linalg.norm(run.end_to_end[-1] - least) / np.linalg.norm(least)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    sizes = QUICK if parser.parse_args().quick else FULL
    found = sizes | measure(**sizes)
    Console(width=200).print(f"jax {jax.__version__}: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()))


if __name__ == "__main__":
    main()
