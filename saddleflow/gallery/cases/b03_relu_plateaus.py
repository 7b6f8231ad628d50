"""B03: plateaus of a small ReLU network on five points."""

import jax
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve, name_point

WIDTH, START = 50, 8e-6
POINTS = np.array([-1, -0.6, -0.1, 0.3, 0.7])
TARGETS = np.array([0.28, -0.1, 0.03, 0.23, -0.22])


def predict(model, x):
    """Two layers without biases; ReLU softened far below the sizes that matter."""
    return model["outer"] @ sf.activations.relu(model["inner"] @ x, 1e-6)


def pose():
    """Four starts of the source's law to t = 200, the source's 200,000 steps."""
    objective = sf.regression(predict, np.stack([POINTS, np.ones(5)], axis=1), TARGETS)
    runs = []
    for seed in range(4):
        keys = jax.random.split(jax.random.key(seed))
        model = {
            "inner": START * jax.random.normal(keys[0], (WIDTH, 2)),
            "outer": START * jax.random.normal(keys[1], (WIDTH,)),
        }
        runs.append(sf.gradient_flow(objective, model, t1=200.0, rtol=1e-3, max_steps=20_000))
    return runs


def judge(runs):
    """Times of the first two escapes, which the source marks at 42,000 and 152,000 steps of 1e-3."""
    visits = [run.saddles(stationary_points=False) for run in runs]
    times = [np.median([found[k].escape_time for found in visits if len(found) > k] or [np.nan]) for k in range(2)]
    return [
        Number.near(
            "loss of the first plateau: mean of y^2",
            np.mean(TARGETS**2),
            visits[0][0].cost,
            within=1e-3,
            origin="stated",
        ),
        Number.near("first escape, median of starts (marked at 42,000 steps)", 42.0, times[0], within=0.5),
        Number.near("second escape (marked at 152,000 steps)", 152.0, times[1], within=0.5),
    ]


def draw(axes, runs):
    """Loss against time."""
    for run in runs:
        (line,) = axes.plot(run.time, run.train_cost, color="C0", lw=0.8)
    name_curve(line, "four starts", at=0.5, offset=(6, 8))
    for time in (42, 152):
        axes.axvline(time, color="C1", lw=0.7, ls=":")
    name_point(axes, (152, 0.037), "marked by the source", "C1", (-4, 0), ha="right")
    axes.set(xlabel="time (learning rate x steps)", ylabel="loss")


CASE = Case(
    name="B03",
    title="plateaus of a ReLU network on five points",
    source="ZhengqingUUU/relu_like_NN_loss_landscape, commit d471ee7, 01_2D_input_1D_output.ipynb",
    paper="Wu et al., arXiv 2402.05626",
    computed=(
        "Fifty ReLU neurons from weights of 8e-6 learn five points in steps, as groups of neurons grow one after "
        "another. The points are the source's, the starts other draws."
    ),
    source_cost="600,000 steps of 1e-3, 42 s",
    pose=pose,
    judge=judge,
    draw=draw,
    smaller="a ReLU softened by 1e-6, to t = 200.",
    in_law=True,
)
