"""A02: plateaus of the population cost, and a grid of noisy tasks."""

import jax
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_point

SPECTRUM = 50 / np.arange(1, 6)
PLATEAUS = (731.8, 231.8, 106.8, 51.25, 20.0)  # the source's: per sample and output


def pose():
    """One flow of the population, and a sweep over noise, exponent, width and seed."""
    population = sf.MeanSquaredError.teacher(np.diag(SPECTRUM))
    start = sf.gaussian(jax.random.key(0), depth=4, width=100, shape=(5, 5), gamma=1.5)
    flow = sf.gradient_flow(population, start, rtol=1e-4)
    costs = [
        sf.MeanSquaredError.random(
            jax.random.key(1), teacher=np.diag(SPECTRUM), num_samples=500, num_test_samples=500, noise=noise
        )
        for noise in (0.0, 0.2)
    ]
    grid = sf.sweep(costs, depth=4, gamma=[0.75, 1.0, 1.5], width=[10, 100], seed=range(2))
    return flow, grid


def judge(posed):
    """Heights of the plateaus; ends of the grid. Our costs are sums over the five outputs, the source's means."""
    flow, grid = posed
    visits = {visit.rank: visit.cost / 5 for visit in flow.saddles(stationary_points=False)}
    numbers = [
        Number.near(f"plateau of rank {rank}", height, visits.get(rank, np.nan), within=3e-2)
        for rank, height in enumerate(PLATEAUS)
    ]
    ends = grid.train_cost.isel(sample=-1) / 5
    return [
        *numbers,
        Number.near(
            "flows of the grid at a minimum",
            grid.stop_reason.size,
            (grid.stop_reason == "converged").sum(),
            absolute=0.5,
            origin="stated",
        ),
        Number.near(
            "mean train cost at the end, noise 0.2",
            0.04 * (1 - 5 / 500),
            ends.isel(cost=1).mean(),
            within=0.1,
            origin="derived",
        ),
    ]


def draw(axes, posed):
    """Cost against time."""
    flow, _ = posed
    axes.semilogy(5 * flow.time, flow.train_cost / 5)
    axes.set(xlabel="time (learning rate x steps)", ylabel="cost", ylim=(4, 2e3))
    axes.set_title("a flow, w = 100, gamma = 1.5; dotted: the source's plateaus")
    for height in PLATEAUS:
        axes.axhline(height, color="C1", lw=0.7, ls=":")
        name_point(axes, (5 * flow.time[-1], height), f"{height:g}", "C1", (0, 5), ha="right")


CASE = Case(
    name="A02",
    title="plateaus of a teacher, and a grid of networks",
    source="seamus-fallows/Training-Dynamics-of-Deep-Learning, commit 5eb85fa0",
    paper="after Jacot et al., arXiv 2106.15933",
    computed=(
        "Depth 4 on a teacher with singular values 50/i: plateaus of the population cost; full-batch training "
        "over exponents, widths, seeds and two levels of noise."
    ),
    source_cost="up to 26,000 steps per run, on 128 to 192 CPU workers with the mini-batch runs",
    pose=pose,
    judge=judge,
    draw=draw,
    smaller="two widths and two seeds of the grid; full batches only; teacher and samples are other draws.",
    in_law=True,
)
