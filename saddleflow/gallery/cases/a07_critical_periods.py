"""A07: critical periods, what a first task leaves of the second."""

import jax
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_point

SIZE, OBSERVED, DEPTH, START = 40, 480, 3, 1e-3
STEPS = (0, 1000, 5000, 10_000, 20_000, 40_000, 60_000, 80_000, 100_000)  # of the source, at which the task changes
TIMES = [steps / 40 for steps in STEPS]  # learning rate 0.2, half our cost, and a quarter for the smaller matrix


def task(seed, rank):
    """Completion of a random matrix of a rank, its entries of size one."""
    keys = jax.random.split(jax.random.key(seed), 3)
    target = np.asarray(jax.random.normal(keys[0], (SIZE, rank)) @ jax.random.normal(keys[1], (rank, SIZE)))
    observed = np.asarray(jax.random.permutation(keys[2], SIZE**2) < OBSERVED).reshape(SIZE, SIZE)
    return sf.MatrixCompletion(SIZE * target / np.linalg.norm(target), observed)


def pose():
    """A first task of rank 4, then one of rank 2: nine times of the change, in one sweep."""
    first, second = task(0, rank=4), task(1, rank=2)
    return sf.sweep(
        second,
        init=sf.after(first, sf.gaussian, rtol=1e-3),
        switch_time=TIMES,
        depth=DEPTH,
        width=SIZE,
        variance=START ** (2 / DEPTH) / SIZE,
        t1=1000.0,
        rtol=1e-3,
    )


def judge(data):
    """Errors and ranks after the second task, by the time of the change."""
    error, rank = data.test_cost.isel(sample=-1).values, data["rank"].isel(sample=-1).values
    return [
        Number.at_most("error of the unseen entries without a first task", 1e-4, error[0], origin="stated"),
        Number.near("rank without a first task", 2, rank[0], absolute=0.5, origin="stated"),
        Number.at_most("error after the change at step 5,000, early", 1e-4, error[2], origin="stated"),
        Number.at_least("error after the change at step 100,000, late", 1e-3, error[-1], origin="stated"),
        Number.at_least("rank after the change at step 100,000", 3, rank[-1], origin="stated"),
    ]


def draw(axes, data):
    """Error of the second task against the step of the change."""
    error, rank = data.test_cost.isel(sample=-1).values, data["rank"].isel(sample=-1).values
    axes.semilogy(STEPS, np.maximum(error, 1e-9), "o-", ms=3)
    for steps, value, number in zip(STEPS[2:], error[2:], rank[2:], strict=True):
        name_point(axes, (steps, value), f"rank {number}", offset=(6, -7 if value > 1e-5 else 5))
    axes.set(ylim=(1e-7, 0.1), xlabel="step at which the task changes", ylabel="error of the second task")


CASE = Case(
    name="A07",
    title="critical periods of deep linear networks",
    source="mjkleinman/CriticalPeriodDeepLinearNets, commit c3c1f47",
    paper="Kleinman et al., ICLR 2024, arXiv 2308.12221",
    computed=(
        "A network completes one matrix and then another, of lower rank: the later the change, the worse the "
        "second is completed, since the network keeps directions of the first."
    ),
    source_cost="up to 150,000 steps of 0.2 for each of nine times and four seeds",
    pose=pose,
    judge=judge,
    draw=draw,
    smaller=(
        "40 x 40 of ranks 4 and 2 in place of 100 x 100 of ranks 10 and 5, 480 entries in place of 2,000; one seed."
    ),
    in_law=True,
)
