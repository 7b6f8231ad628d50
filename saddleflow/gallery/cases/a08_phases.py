"""A08: three points of the phase diagram of wide two-layer networks."""

import jax
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve, name_point

SIZE, RANK, SMALL = 200, 5, -2.2  # d, k, exponent of the variance in d
PRINTED = {
    1.75: (304, 0.9045, 0.0525),
    1.786: (298, 0.8977, 0.0527),
    1.822: (292, 0.8899, 0.0530),
}  # steps, train, test


def pose():
    """Widths d^1.75, d^1.786 and d^1.822, drawn reduced, to the times of the source's printed steps."""
    keys = jax.random.split(jax.random.key(0), 4)
    left, right = (jax.random.normal(key, (SIZE, RANK)) / RANK**0.25 for key in keys[:2])
    target, noise = left @ right.T, jax.random.normal(keys[2], (SIZE, SIZE))
    cost = sf.MeanSquaredError(np.eye(SIZE), target + noise, np.eye(SIZE), target)
    rate = 1 / (50 * np.linalg.norm(target, 2))
    runs = {}
    for exponent, (steps, _, _) in PRINTED.items():
        width = int(SIZE**exponent)
        start = sf.sample_reduced(keys[3], depth=2, width=width, shape=(SIZE, SIZE), variance=SIZE**SMALL)
        runs[exponent] = sf.gradient_flow(cost, start, t1=rate * steps * SIZE / 2, rtol=1e-4)
    return runs


def judge(runs):
    """Train and test cost, in the source's units: means over d^2 entries, ours over d samples."""
    numbers = []
    for exponent, (steps, train, test) in PRINTED.items():
        run, where = runs[exponent], f"at step {steps}, w = d^{exponent}"
        numbers += [
            Number.near(f"train {where}", train, run.train_cost[-1] / SIZE, within=2e-2),
            Number.near(f"test {where}", test, run.test_cost[-1] / SIZE, within=1e-1),
        ]
    first = runs[1.75]
    return [
        Number.near("train at the start", 2.002, first.train_cost[0] / SIZE, within=5e-2),
        Number.near("test at the start", 1.012, first.test_cost[0] / SIZE, within=1e-1),
        *numbers,
    ]


def draw(axes, runs):
    """Train and test cost against the source's steps."""
    run = runs[1.75]
    steps = 304 * run.time / run.time[-1]
    for values, name, colour, offset in (
        (run.train_cost, "train", "C0", (0, 7)),
        (run.test_cost, "test", "C1", (-8, -7)),
    ):
        (line,) = axes.semilogy(steps, values / SIZE, color=colour)
        name_curve(line, name, at=0.6, offset=offset, ha="center")
    for value, colour in ((0.9045, "C0"), (0.0525, "C1")):
        axes.plot(304, value, "o", ms=4, color=colour, mfc="none")
        name_point(axes, (304, value), f"{value} printed", colour, (-5, -8), ha="right")
    axes.set(ylim=(0.03, 3), xlabel="the source's steps", ylabel="cost", title="d = 200, w = 10,640, variance d^-2.2")


CASE = Case(
    name="A08",
    title="phase diagram of wide two-layer networks",
    source="aranguri/phase-diagram, commit 2f032ab",
    paper="Tu, Aranguri and Jacot, arXiv 2405.17580",
    computed=(
        "A noisy 200 x 200 matrix of rank 5, learned by two layers of width 10,000 to 3,000,000. The source makes "
        "900 runs over width and variance; three points whose costs it prints are repeated."
    ),
    source_cost="900 runs of at most 750 steps",
    pose=pose,
    judge=judge,
    draw=draw,
    smaller="three of 900 points; networks are drawn reduced, in 400 directions.",
    in_law=True,
)
