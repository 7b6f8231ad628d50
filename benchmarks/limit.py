"""The limit of small starts in numbers: plateaus against greedy saddles, and Algorithm A against its limit.

    python benchmarks/limit.py            both tables, and verdicts
    python benchmarks/limit.py --tasks 3  fewer random tasks

Table 1: for random tasks (10x10, rank 3, 80 % observed) and L = 2, 3, 4, the plateau costs of the flow from `alpha *
theta_0` (width 20, variance 1/w) against the saddles of `saddle_to_saddle`: the largest relative gap of a task's
plateaus, its median and maximum over the tasks that showed all of them, and how many did.
Table 2: figure 1's task; Algorithm A at falling epsilon against the limit: the largest distance of A along a stage, at
equal cost, and of the points where stages end.
"""

import argparse
import time

import jax
import numpy as np

import saddleflow as sf

ALPHAS = (1e-2, 1e-3, 1e-4)


def plateau_gap(cost, path, theta, alpha):
    """Largest relative gap between a flow's plateaus and the greedy saddles; NaN where a plateau is missing."""
    flow = sf.gradient_flow(cost, alpha * theta, rtol=1e-4, gradient_tolerance=1e-3, progress=False)
    plateaus = {visit.rank: visit.cost for visit in flow.visits}
    gaps = [abs(plateaus.get(s.rank, np.nan) - s.cost) / s.cost for s in path.saddles]
    return max(gaps) if np.all(np.isfinite(gaps)) else np.nan


def plateaus(num_tasks):
    print(f"Plateau costs against greedy saddles, {num_tasks} random tasks")
    print(f"{'L':>2} {'alpha':>8} {'all plateaus':>13} {'median gap':>11} {'largest gap':>12}")
    for depth in (2, 3, 4):
        gaps = np.full((len(ALPHAS), num_tasks), np.nan)
        closest, ends = [], set()
        for seed in range(num_tasks):
            key_task, key_start = jax.random.split(jax.random.key(seed))
            cost = sf.MatrixCompletion.random(key_task, shape=(10, 10), rank=3, observed=0.8)
            path = sf.saddle_to_saddle(cost, depth, progress=False)
            ends.add((path.stop_reason, len(path.stages)))
            closest.append(max(s.strengths[1] / s.strengths[0] for s in path.saddles))
            theta = sf.gaussian(key_start, depth=depth, width=20, shape=(10, 10), gamma=1.0)
            gaps[:, seed] = [plateau_gap(cost, path, theta, alpha) for alpha in ALPHAS]
        for alpha, row in zip(ALPHAS, gaps, strict=True):
            seen = row[np.isfinite(row)]
            middle, worst = (np.median(seen), seen.max()) if len(seen) else (np.nan, np.nan)
            print(f"{depth:>2} {alpha:>8.0e} {len(seen):>10}/{num_tasks:<2} {middle:>11.1e} {worst:>12.1e}")
        below = int(np.sum(gaps[-1] < 1e-3))
        falling = int(np.sum(np.all(np.diff(gaps, axis=0) < 0, axis=0)))
        verdict = "PASS" if below == num_tasks else "MISS"
        print(f"{verdict}: L={depth}: gap below 1e-3 at alpha=1e-4 on {below} of {num_tasks}; falling on {falling}")
        print(
            f"  greedy paths end as {sorted(ends)}; s_2/s_1 of a task's closest saddle: {np.max(closest):.3f} at most"
        )
        others = [seed for seed in range(num_tasks) if not gaps[-1, seed] < 1e-3]
        for seed in others:
            print(f"  task {seed}: gap {gaps[-1, seed]:.1e}, s_2/s_1 = {closest[seed]:.3f}")


def algorithm():
    cost = sf.MatrixCompletion.random(
        jax.random.split(jax.random.key(3))[0], shape=(10, 10), rank=3, observed=0.8
    )  # figure 1's
    depth, rate = 4, 0.1
    limit = sf.saddle_to_saddle(cost, depth, rtol=1e-8, progress=False)
    print("Algorithm A against its limit, figure 1's task, L = 4, eta = 0.1: largest distance of A")
    print(f"{'epsilon':>8} {'T':>8} {'stages':>7} {'along stages':>24} {'at saddles':>24} {'seconds':>8}")
    for epsilon in (0.3, 0.1, 0.03):
        slowest = min(s.strengths[0] for s in limit.saddles)
        steps = int((2 / ((depth - 2) * slowest * epsilon ** (depth - 2)) + 3000) / rate)
        begin = time.perf_counter()
        path = sf.greedy_descent(
            cost,
            depth,
            epsilon=epsilon,
            num_steps=steps,
            learning_rate=rate,
            minimum_cost=-epsilon / 2,
            max_stages=3,
            max_saves=min(steps, 20_000),
        )
        seconds = time.perf_counter() - begin
        along = [
            distance_at_equal_cost(ours, theirs) for ours, theirs in zip(path.stages, limit.stages, strict=False)
        ]
        at = [np.linalg.norm(a.end_to_end - b.end_to_end) for a, b in zip(path.points, limit.points, strict=False)]
        print(
            f"{epsilon:>8.2f} {steps:>8} {len(path.stages):>7} {' '.join(f'{d:7.1e}' for d in along):>24} "
            f"{' '.join(f'{d:7.1e}' for d in at[1:]):>24} {seconds:>8.1f}"
        )


def distance_at_equal_cost(stage, reference):
    """Largest |A - A_ref|_F where both pass the same cost, between 1 and 99 % of the reference's way."""
    costs = reference.train_cost
    share = (costs[0] - costs) / (costs[0] - costs[-1])
    rows = np.flatnonzero((share > 0.01) & (share < 0.99))
    order = np.maximum.accumulate(-stage.train_cost)
    entries = stage.end_to_end.reshape(len(stage.time), -1).T
    there = np.stack([np.interp(-costs[rows], order, entry) for entry in entries], axis=1)
    return np.max(np.linalg.norm(there - reference.end_to_end[rows].reshape(len(rows), -1), axis=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=20, help="random tasks (20)")
    arguments = parser.parse_args()
    algorithm()
    plateaus(arguments.tasks)


if __name__ == "__main__":
    main()
