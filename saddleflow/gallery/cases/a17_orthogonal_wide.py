"""A17: a wide network from an orthogonal start, beside the convex problem."""

import jax
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.gallery.drawing import name_curve

WIDTH, OUTPUTS, SAMPLES, DEPTH = 128, 10, 1000, 4
RATE, STEPS = 7e-4, 100


def pose():
    """The source's 100 steps as a flow, and the flow of one layer, 0.4 times as fast."""
    keys = jax.random.split(jax.random.key(0), 4)
    cost = sf.MeanSquaredError.random(
        keys[0], teacher=jax.random.normal(keys[1], (OUTPUTS, WIDTH)), num_samples=SAMPLES, noise=1.0
    )
    # the output's factor (128^3 10)^(-1/2) as a share of every layer: the flow is the same, its time runs otherwise
    share = (WIDTH**3 * OUTPUTS) ** (-1 / 2 / DEPTH)
    start = sf.orthogonal(keys[2], depth=DEPTH, width=WIDTH, shape=cost.shape, scale=share * WIDTH**0.5)
    times = np.linspace(0, RATE * STEPS, 51)  # of half the sum of squares: ours is a mean
    deep = sf.gradient_flow(cost, start, save_at=share**2 * SAMPLES / 2 * times, rtol=1e-4)
    convex = sf.DeepLinearNetwork([start.end_to_end()])
    shallow = sf.gradient_flow(cost, convex, save_at=DEPTH / OUTPUTS * SAMPLES / 2 * times, rtol=1e-6)
    return STEPS * times / times[-1], deep, shallow, cost(minimum(cost))


def minimum(cost):
    """The least-squares solution, to which the flow of one layer runs."""
    run = sf.gradient_flow(cost, sf.DeepLinearNetwork([np.zeros(cost.shape)]), gradient_tolerance=1e-10)
    return run.end_to_end[-1]


def judge(posed):
    """Both reach the minimum, at which speeds, and how the samples are conditioned."""
    steps, deep, shallow, floor = posed
    excess = deep.train_cost - floor, shallow.train_cost - floor
    rates = [np.log(values[5] / values[15]) / (steps[15] - steps[5]) for values in excess]
    values = np.linalg.svd(np.asarray(deep.cost.train_set.root), compute_uv=False)
    return [
        Number.near("condition number of the samples", 2.0245, values[0] / values[-1], within=0.1),
        Number.at_most(
            "excess cost at step 100 over that at 0, four layers", 1e-3, excess[0][-1] / excess[0][0], origin="stated"
        ),
        Number.at_most("the same, one layer", 1e-3, excess[1][-1] / excess[1][0], origin="stated"),
        Number.near(
            "plateaus of four layers", 0, len(deep.saddles(stationary_points=False)), absolute=0.5, origin="stated"
        ),
        Number.at_least(
            "rate of the excess, four layers over one (1 only for infinite width)",
            1.0,
            rates[0] / rates[1],
            origin="derived",
        ),
    ]


def draw(axes, posed):
    """Excess costs against steps."""
    steps, deep, shallow, floor = posed
    for run, name, colour, style, offset in (
        (deep, "four layers", "C0", "-", (6, 8)),
        (shallow, "one layer", "C1", "--", (-6, -8)),
    ):
        (line,) = axes.semilogy(steps, run.train_cost - floor, style, color=colour)
        name_curve(line, name, at=0.5, offset=offset, ha="left" if offset[0] > 0 else "right")
    axes.set(xlabel="the source's steps", ylabel="cost above its minimum")


CASE = Case(
    name="A17",
    title="a wide network from an orthogonal start",
    source="HongruZhao/deep_linear_network, commit 62593c8",
    paper="after Hu, Xiao and Pennington, ICLR 2020, arXiv 2001.05992",
    computed=(
        "Widths 128-128-128-128-10, orthogonal layers, outputs scaled: training runs beside the convex problem of "
        "one layer and converges like it, without a plateau; at this width it is nearly twice as fast, since the "
        "layers grow."
    ),
    source_cost="100 steps of 7e-4",
    pose=pose,
    judge=judge,
    draw=draw,
    in_law=True,
)
