"""Whether a run's plateaus are the greedy saddles: ranks and costs on random tasks and seeds.

    python benchmarks/detection.py [--depth 3] [--alpha 1e-6] [--seeds 50]

Matrix completion, 10 x 10 of rank 3, 80 % observed, width 20, rtol 1e-3. Found means: the visits of the flow have the
ranks of the saddles of `saddle_to_saddle`, one for one, at their costs within one per cent.
"""

import argparse

import jax
import numpy as np
from rich.progress import track

import saddleflow as sf


def visits_and_saddles(depth: int, alpha: float, seed: int) -> tuple[list, list]:
    """(rank, cost) of the visits of a flow, and of the saddles of the greedy path."""
    cost = sf.MatrixCompletion.random(jax.random.key(seed))
    theta = sf.gaussian(jax.random.key(1000 + seed), depth=depth, width=20, shape=(10, 10), variance=1 / 20)
    run = sf.gradient_flow(cost, alpha * theta, rtol=1e-3, progress=False)
    path = sf.saddle_to_saddle(cost, depth, progress=False)
    visits = run.saddles(stationary_points=False)
    return [(v.rank, v.cost) for v in visits], [(s.rank, s.cost) for s in path.saddles]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--alpha", type=float, default=1e-6)
    parser.add_argument("--seeds", type=int, default=50)
    arguments = parser.parse_args()
    found, gaps = 0, []
    for seed in track(range(arguments.seeds)):
        visits, saddles = visits_and_saddles(arguments.depth, arguments.alpha, seed)
        same = [rank for rank, _ in visits] == [rank for rank, _ in saddles]
        gap = max(abs(v / s - 1) for (_, v), (_, s) in zip(visits, saddles, strict=False)) if same else np.inf
        gaps.append(gap)
        found += gap < 0.01
        if not gap < 0.01:
            print(f"seed {seed}: visits {visits}, greedy saddles {saddles}")
    print(f"found on {found} of {arguments.seeds} seeds; median relative gap in cost {np.median(gaps):.1e}")


if __name__ == "__main__":
    main()
