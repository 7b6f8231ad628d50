"""Steps against log(1/alpha), to train cost 1e-8: as `gradient_flow` comes, and in plain coordinates.

    python benchmarks/growth.py [--width 20]

Matrix completion, 10 x 10 of rank 3 (singular values 1, .6, .3), 70 entries observed, cost half the sum of squares;
start alpha * theta_0 with variance 1/w; rtol 1e-4. L = 2 and 3; the verdict is on steps a decade of alpha.
"""

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table

import saddleflow as sf

DECADES = {2: (1, 2, 3, 5, 7, 9, 11, 12), 3: (1, 2, 3, 4, 5)}
SEED = 0


def task() -> sf.MatrixCompletion:
    """The target, and which of its entries are observed."""
    rng = np.random.default_rng(SEED)
    left, right = (np.linalg.qr(rng.standard_normal((10, 3)))[0] for _ in range(2))
    return sf.MatrixCompletion(left * [1.0, 0.6, 0.3] @ right.T, rng.permutation(100).reshape(10, 10) < 70)


def start(depth: int, width: int) -> sf.DeepLinearNetwork:
    """`theta_0`, entries of variance 1/width."""
    rng, sizes = np.random.default_rng(depth), (10, *(width,) * (depth - 1), 10)
    shapes = zip(sizes[1:], sizes[:-1], strict=True)
    return sf.DeepLinearNetwork(rng.standard_normal(shape) / np.sqrt(width) for shape in shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=20)
    width = parser.parse_args().width
    cost = task()
    bound = 2e-8 / cost.num_observed  # the library's cost is the mean of squares

    def stop(time, network):
        return cost(network.end_to_end()) <= bound

    console = Console(width=120)
    for graded, name in ((None, "as it comes"), (False, "plain coordinates")):
        table = Table("L", "alpha", "end", "steps", "rejected", "f", "Jv", "steps a decade", title=name)
        for depth, decades in DECADES.items():
            steps: list[int] = []
            for index, decade in enumerate(decades):
                run = sf.gradient_flow(
                    cost,
                    10.0**-decade * start(depth, width),
                    rtol=1e-4,
                    stop=stop,
                    gradient_tolerance=1e-12,
                    max_steps=5000,
                    graded=graded,
                    progress=False,
                )
                stats = run.stats
                steps.append(stats["num_steps"])
                slope = (steps[-1] - steps[-2]) / (decade - decades[index - 1]) if index else np.nan
                rejected = f"{stats['num_rejected_steps'] / steps[-1]:.1%}"
                counts = (stats["num_vector_field_evaluations"], stats["num_hessian_vector_products"])
                cells = (depth, f"1e-{decade:02}", run.stop_reason, steps[-1], rejected, *counts, f"{slope:.0f}")
                table.add_row(*map(str, cells))
        console.print(table)


if __name__ == "__main__":
    main()
