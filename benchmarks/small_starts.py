"""Flows from tiny starts: steps, evaluations and escape times as alpha falls, in graded and in plain coordinates.

    python benchmarks/small_starts.py [L alpha,alpha,...] [--width 20] [--seeds 3] [--plain]

Matrix completion, 10 x 10 of rank 3, 80 % observed; start alpha * theta_0 with variance 1/w; rtol 1e-3. Escape times
are in units of alpha^-(L-2) (for L = 2 as they are). Without arguments: L = 2 to 5, to the smallest starts that
float64 resolves and one beyond.
"""

import argparse

import jax
from rich.console import Console
from rich.table import Table

import saddleflow as sf

SCALES = {
    2: (1e-3, 1e-8, 1e-12, 1e-15),
    3: (1e-3, 1e-6, 1e-9, 1e-12, 1e-15, 1e-18),
    4: (1e-3, 1e-5, 1e-7, 1e-8, 1e-10),
    5: (1e-3, 1e-4, 1e-5, 1e-7),
}


SECONDS = 60.0  # a run at most, compilation included: plain coordinates may get nowhere


def run(depth: int, width: int, alpha: float, seed: int, graded: bool | None) -> sf.Trajectory:
    """One flow to its end."""
    cost = sf.MatrixCompletion.random(jax.random.key(10 + seed))
    theta = sf.gaussian(jax.random.key(1000 + seed), depth=depth, width=width, shape=(10, 10), variance=1 / width)
    how = {"rtol": 1e-3, "max_steps": 3000, "max_seconds": SECONDS}
    return sf.gradient_flow(cost, alpha * theta, **how, graded=graded, progress=False)


def row(run: sf.Trajectory, depth: int, alpha: float) -> list[str]:
    """Its line of the table."""
    stats, unit = run.stats, alpha ** (depth - 2)
    return [
        run.stop_reason,
        str(stats["num_steps"]),
        f"{stats['num_rejected_steps'] / max(stats['num_steps'], 1):.0%}",
        str(stats["num_vector_field_evaluations"]),
        str(stats["num_hessian_vector_products"]),
        "  ".join(
            f"{visit.rank}: {visit.cost:.5f} until {visit.escape_time * unit:.5g}"
            for visit in run.saddles(stationary_points=False)
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("depth", nargs="?", type=int)
    parser.add_argument("alphas", nargs="?")
    parser.add_argument("--width", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="the same without rebasing, beside it")
    arguments = parser.parse_args()
    scales = SCALES
    if arguments.depth is not None:
        alphas = arguments.alphas and tuple(map(float, arguments.alphas.split(",")))
        scales = {arguments.depth: alphas or SCALES[arguments.depth]}
    table = Table("L", "alpha", "seed", "coordinates", "end", "steps", "rejected", "f", "Jv", "plateaus (rank: cost)")
    for depth, alphas in scales.items():
        for alpha in alphas:
            for seed in range(arguments.seeds):
                for graded, name in ((None, "default"), (False, "plain"))[: 1 + arguments.plain]:
                    result = run(depth, arguments.width, alpha, seed, graded)
                    table.add_row(str(depth), f"{alpha:.0e}", str(seed), name, *row(result, depth, alpha))
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
