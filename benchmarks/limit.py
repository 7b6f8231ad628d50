"""The limit of small starts in numbers: plateaus against greedy saddles, and Algorithm A against its limit.

    python benchmarks/limit.py            both tables, and verdicts
    python benchmarks/limit.py --tasks 3  fewer random tasks

Table 1: figure 1's task; Algorithm A at falling epsilon and eta against its limit: the largest distance of A along a
stage, at equal cost, and of the points where stages end.
Table 2: for random tasks (10x10, rank 3, 80 % observed) and L = 2, 3, 4, the plateau costs of the flow from `alpha *
theta_0` (width 20, variance 1/w) against the saddles of `saddle_to_saddle`: the relative gap (largest of a task's
saddles; median and maximum over tasks), and on how many tasks the flow shows a plateau at every rank; where it shows
none, the cost of its nearest approach to the saddle counts. What separates the escape along the first singular pair
from the second is alpha^(1 - s_2/s_1): where two values are close, 1e-4 is not yet small.
"""

import argparse
import time

import jax
import numpy as np

import saddleflow as sf
from saddleflow.greedy.comparison import Curve

ALPHAS = {2: (1e-2, 1e-4, 1e-8, 1e-12), 3: (1e-2, 1e-3, 1e-4, 1e-8), 4: (1e-2, 1e-3, 1e-4)}


def plateau_gap(cost, path, theta, alpha):
    """Largest relative gap between plateaus and saddles; whether every rank has a plateau."""
    flow = sf.gradient_flow(cost, alpha * theta, rtol=1e-4, gradient_tolerance=1e-3, progress=False)
    visits = flow.saddles(stationary_points=False)
    nearest = [np.argmin(np.linalg.norm(flow.end_to_end - s.end_to_end, axis=(1, 2))) for s in path.saddles]
    gaps = []
    for saddle, row in zip(path.saddles, nearest, strict=True):
        heights = [visit.cost for visit in visits if visit.rank == saddle.rank] or [flow.train_cost[row]]
        gaps.append(min(abs(height - saddle.cost) / saddle.cost for height in heights))
    return max(gaps), [visit.rank for visit in visits] == [s.rank for s in path.saddles]


def plateaus(num_tasks):
    print(f"\nPlateau costs against greedy saddles, {num_tasks} random tasks")
    print(f"{'L':>2} {'alpha':>8} {'median gap':>11} {'largest gap':>12} {'below 1e-3':>11} {'all plateaus':>13}")
    for depth, alphas in ALPHAS.items():
        gaps, seen = np.zeros((len(alphas), num_tasks)), np.zeros((len(alphas), num_tasks), bool)
        ratios, ends = np.zeros(num_tasks), set()
        for seed in range(num_tasks):
            key_task, key_start = jax.random.split(jax.random.key(seed))
            cost = sf.MatrixCompletion.random(key_task, shape=(10, 10), rank=3, observed=0.8)
            path = sf.saddle_to_saddle(cost, depth, progress=False)
            ends.add((path.stop_reason, len(path.stages)))
            ratios[seed] = max(s.strengths[1] / s.strengths[0] for s in path.saddles)
            theta = sf.gaussian(key_start, depth=depth, width=20, shape=(10, 10), gamma=1.0)
            for row, alpha in enumerate(alphas):
                gaps[row, seed], seen[row, seed] = plateau_gap(cost, path, theta, alpha)
        for alpha, row, shown in zip(alphas, gaps, seen, strict=True):
            below = f"{np.sum(row < 1e-3)}/{num_tasks}"
            shows = f"{np.sum(shown)}/{num_tasks}"
            print(f"{depth:>2} {alpha:>8.0e} {np.median(row):>11.1e} {row.max():>12.1e} {below:>11} {shows:>13}")
        at = gaps[alphas.index(1e-4)]
        verdict = "PASS" if np.all(at < 1e-3) else "MISS"
        print(f"{verdict}: L={depth}: gap below 1e-3 at alpha=1e-4 on {np.sum(at < 1e-3)} of {num_tasks}")
        print(f"  greedy paths end as (reason, stages): {sorted(ends)}")
        others = [f"{seed} ({at[seed]:.1e}; {ratios[seed]:.2f})" for seed in range(num_tasks) if at[seed] >= 1e-3]
        if others:
            print(f"  above it, task (gap; largest s_2/s_1 of a saddle): {', '.join(others)}")


def algorithm():
    key_task, _ = jax.random.split(jax.random.key(3))
    cost = sf.MatrixCompletion.random(key_task, shape=(10, 10), rank=3, observed=0.8)
    depth = 4
    limit = sf.saddle_to_saddle(cost, depth, rtol=1e-9, save_networks=True, progress=False)
    curves = [finely(cost, stage) for stage in limit.stages]
    print("Algorithm A against its limit, figure 1's task, L = 4: largest distance of A")
    print(f"{'epsilon':>8} {'eta':>5} {'T':>8} {'along stages':>24} {'at their ends':>24} {'seconds':>8}")
    for epsilon, rate in ((0.6, 0.1), (0.6, 0.02), (0.3, 0.1), (0.3, 0.02), (0.15, 0.1), (0.15, 0.02)):
        slowest = min(s.strengths[0] for s in limit.saddles)
        steps = int((2 / ((depth - 2) * slowest * epsilon ** (depth - 2)) + 3000) / rate)
        begin = time.perf_counter()
        # a threshold below every cost: all three stages are wanted, also where the stop test would end before
        how = {"minimum_cost": -epsilon, "max_stages": 3, "max_saves": 5000}
        path = sf.greedy_descent(cost, depth, epsilon=epsilon, num_steps=steps, learning_rate=rate, **how)
        seconds = time.perf_counter() - begin
        along = [distance_at_equal_cost(stage, *curve) for stage, curve in zip(path.stages, curves, strict=True)]
        at = [np.linalg.norm(a.end_to_end - b.end_to_end) for a, b in zip(path.points, limit.points, strict=True)]
        print(
            f"{epsilon:>8.2f} {rate:>5.2f} {steps:>8} {' '.join(f'{d:7.1e}' for d in along):>24} "
            f"{' '.join(f'{d:7.1e}' for d in at[1:]):>24} {seconds:>8.1f}"
        )


def finely(cost, stage):
    """Costs and matrices of a stage at a fine grid of times, between its steps by the flow's own derivatives."""
    steps = np.arange(len(stage.time))
    times = np.interp(np.linspace(0, steps[-1], 20 * len(steps)), steps, stage.time)
    matrices = Curve(cost, stage).end_to_end(times)
    return np.asarray(jax.vmap(cost)(matrices)), np.asarray(matrices)


def distance_at_equal_cost(stage, costs, matrices):
    """Largest |A - A_limit|_F where both have the same cost, between 1 and 99 % of the limit's way."""
    share = (costs[0] - stage.train_cost) / (costs[0] - costs[-1])
    rows = np.flatnonzero((share > 0.01) & (share < 0.99))
    entries = matrices.reshape(len(costs), -1).T
    there = np.stack([np.interp(-stage.train_cost[rows], -costs, entry) for entry in entries], axis=1)
    return np.max(np.linalg.norm(there - stage.end_to_end[rows].reshape(len(rows), -1), axis=1), initial=0.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=20, help="random tasks (20)")
    arguments = parser.parse_args()
    algorithm()
    plateaus(arguments.tasks)


if __name__ == "__main__":
    main()
