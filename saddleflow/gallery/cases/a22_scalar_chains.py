"""A22: scalar chains, networks of width 1, up to depth 128."""

import jax.numpy as jnp
import numpy as np
import scipy

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve

DEPTHS = (2, 8, 32, 128)
TARGET, START = 0.5, 0.1  # of the product


def pose():
    """One flow a depth, in the time that the source's learning rate makes its own."""
    cost = sf.MeanSquaredError.teacher(jnp.full((1, 1), TARGET))
    steps, runs = np.linspace(0, 30, 121), {}
    for depth in DEPTHS:
        chain = sf.DeepLinearNetwork([jnp.full((1, 1), START ** (1 / depth))] * depth)
        rate = TARGET ** (2 / depth - 2) / depth
        # the source's gradient is that of half our cost
        runs[depth] = sf.gradient_flow(cost, chain, save_at=rate * steps / 2, rtol=1e-8)
    return steps, runs


def judge(posed):
    """Depth 128 against the source's infinite depth, as it is and extrapolated by 1/L."""
    steps, runs = posed
    numbers = []
    for at in (16, 20, 40):
        products = {depth: run.end_to_end[at, 0, 0] for depth, run in runs.items()}
        exact, step = TARGET * limit(steps[at]), steps[at]
        numbers += [
            Number.near(
                f"product at step {step:.0f}, L = 128, limit L = infinity",
                exact,
                products[128],
                within=3e-2,
                origin="stated",
            ),
            Number.near(
                "the same, extrapolated from L = 32 and 128",
                exact,
                (4 * products[128] - products[32]) / 3,
                within=2e-3,
                origin="stated",
            ),
        ]
    return numbers


def limit(time):
    """Share of the target that a chain of infinite depth has learned, by Lambert's function."""
    first = START / TARGET
    exponent = np.log(1 / first - 1) + 1 / first - time - 1
    return float(1 / (1 + scipy.special.lambertw(np.exp(exponent)).real))


def draw(axes, posed):
    """Products against time."""
    steps, runs = posed
    # names where the curves lie apart, each on the side of its own
    for (depth, run), at in zip(runs.items(), (0.1, 0.14, 0.21, 0.15), strict=True):
        (line,) = axes.plot(steps, run.end_to_end[:, 0, 0])
        beside = {"offset": (6, -2), "ha": "left"} if depth == max(runs) else {"offset": (-5, 2), "ha": "right"}
        name_curve(line, f"L = {depth}", at=at, **beside)
    (line,) = axes.plot(steps, [TARGET * limit(step) for step in steps], ":", color="C4")
    name_curve(line, "infinite depth", at=0.07, offset=(8, -6))
    axes.set(xlim=(0, 15), xlabel="time (the source's steps)", ylabel="product of the weights")


CASE = Case(
    name="A22",
    title="scalar chains of depth 2 to 128",
    source="yedizhang/scalar-chain, commit 4f481c4, main.py",
    paper="Zhang et al., 2026, openreview ij3ZS20xMS",
    computed=(
        "Chains of 2 to 128 scalar weights learn the product 0.5 from 0.1, at a learning rate that makes their "
        "times comparable."
    ),
    source_cost="30 steps per chain",
    pose=pose,
    judge=judge,
    draw=draw,
)
