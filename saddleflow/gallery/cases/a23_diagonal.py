"""A23: a diagonal network from almost zero, which activates one feature after another."""

import jax.numpy as jnp
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve

INPUTS = np.array([[1, 0.5, 0.7, 0], [0.5, 1, 0.1, 0.7]])
TARGETS = np.array([[1.0, 0.0]])
END = (0.0, 0.0, 10 / 7, -10 / 49)


def coefficients(model):
    """The linear predictor of a diagonal network."""
    return model["plus"] ** 2 - model["minus"] ** 2


def pose():
    """One flow from 1e-60."""
    objective = sf.Objective(sf.SquaredError(TARGETS), lambda model: (INPUTS @ coefficients(model))[None])
    start = {"plus": jnp.full(4, 1e-60), "minus": jnp.full(4, 1e-60)}
    return sf.gradient_flow(objective, start, observables={"k": lambda _, model: coefficients(model)})


def judge(run):
    """The end, and the steps on the way, as the source's exact recursion has them."""
    k = run.observables["k"]
    levels = {1: np.array([0.8, 0, 0, 0]), 2: np.array([0, 0, 1.4, 0])}
    nearest = {step: np.abs(k - level).max(axis=1).min() for step, level in levels.items()}
    return [
        *(Number.near(f"k_{j + 1} at the end", END[j], k[-1, j], absolute=1e-3) for j in range(4)),
        Number.near("distance from the first step (4/5, 0, 0, 0)", 0.0, nearest[1], absolute=1e-2),
        Number.near("distance from the second step (0, 0, 7/5, 0)", 0.0, nearest[2], absolute=1e-2),
    ]


def draw(axes, run):
    """Coefficients against time."""
    for j, values in enumerate(run.observables["k"].T):
        (line,) = axes.plot(run.time, values)
        name_curve(line, f"$k_{j + 1}$", at=(0.3, 0.45, 0.9, 1.0)[j], offset=(4, 7) if j < 3 else (-20, 6))
    for value in END[2:]:
        axes.axhline(value, color="C4", lw=0.7, ls=":")
    axes.set(xlabel="time", ylabel="coefficients", title="dotted: the source's end, 10/7 and -10/49")


CASE = Case(
    name="A23",
    title="features of a diagonal network, one by one",
    source="MachineLearning-Nerd/icml26-gradient-flow-implicit-bias-diagonal-networks, commit ceb77da",
    paper="arXiv 2607.12332",
    computed=(
        "Four features, two equations. The paper's recursion for infinitesimal starts activates features 1, 3 and "
        "4 and ends at (0, 0, 10/7, -10/49); the flow does so from 1e-60, in double precision."
    ),
    source_cost="the recursion in exact fractions; the paper's flow with 200 decimal digits",
    pose=pose,
    judge=judge,
    draw=draw,
)
