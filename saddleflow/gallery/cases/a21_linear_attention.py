"""A21: linear attention with merged key and query, a two-layer linear network on cubic features."""

import jax
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number, first_time
from saddleflow.plotting import name_curve, name_point

DIMENSION, LENGTH, HEADS = 4, 32, 8
COVARIANCE = (
    np.diag(np.arange(1.0, DIMENSION + 1)) / 10
)  # of the tokens: eigenvalues in proportion to 1, 2, 3, 4, trace 1


def pose():
    """The loss of a linear map on features `z = vec(mean_n(y_n x_n) x_q^T)`, from their moments."""
    context = COVARIANCE @ COVARIANCE * (1 + 1 / LENGTH) + COVARIANCE * np.trace(COVARIANCE) / LENGTH
    root = np.linalg.cholesky(np.kron(context, COVARIANCE))  # of E z z^T
    aim = np.linalg.solve(root, (COVARIANCE @ COVARIANCE).ravel())  # E y z in its coordinates
    rest = np.trace(COVARIANCE) - aim @ aim  # what no linear map of z explains
    inputs = np.append(root, np.zeros((root.shape[0], 1)), axis=1) * np.sqrt(root.shape[0] + 1)
    outputs = np.append(aim, np.sqrt(rest))[None] * np.sqrt(root.shape[0] + 1)
    cost = sf.MeanSquaredError(inputs, outputs)
    start = sf.gaussian(jax.random.key(0), depth=2, width=HEADS, shape=(1, DIMENSION**2), variance=1e-12)
    return sf.gradient_flow(cost, start)


def judge(run):
    """One drop, from the trace of the covariance to the optimum, at the time of the paper's formula."""
    values = np.diag(COVARIANCE)
    optimum = np.sum(values - values**2 / (values + (values + 1) / LENGTH))
    half = first_time(run.time, -run.train_cost, -(1 + optimum) / 2)
    norm = np.linalg.norm(COVARIANCE @ COVARIANCE)
    visits = run.saddles(stationary_points=False)
    return [
        Number.near("plateaus before the drop", 1, len(visits), absolute=0.5, origin="stated"),
        Number.near(
            "loss of the plateau: trace of the covariance", 1.0, visits[0].cost, within=1e-3, origin="stated"
        ),
        Number.near("loss at the end", optimum, run.train_cost[-1], within=1e-3, origin="stated"),
        Number.near(
            "time of the drop, 2 |E y z| t = ln(1 / start)", np.log(1e6) / 2 / norm, half, within=0.3, origin="stated"
        ),
    ]


def draw(axes, run):
    """Loss against time."""
    (line,) = axes.plot(run.time, run.train_cost)
    axes.set(xlim=(0, 2 * run.time[np.argmax(run.train_cost < 0.6)]), ylim=(0, 1.1), xlabel="time", ylabel="loss")
    name_point(axes, (0, 1.0), "trace of the covariance", offset=(4, 6))
    name_curve(line, "optimum in context", offset=(0, 11), at=0.98, ha="right")


CASE = Case(
    name="A21",
    title="in-context regression by linear attention",
    source="yedizhang/linattn-icl, commit 9a481d5",
    paper="Zhang et al., ICML 2025, arXiv 2501.16265",
    computed=(
        "Attention with merged key and query is a two-layer network on cubic features; from a tiny start its loss "
        "falls once, at once for all directions."
    ),
    source_cost="6,001 steps of 1e-3",
    pose=pose,
    judge=judge,
    draw=draw,
    smaller="the population's loss, by the features' moments, in place of 80,000 sequences.",
)
