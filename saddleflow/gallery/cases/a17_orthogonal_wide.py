"""A17: a wide network from an orthogonal start, beside the convex problem."""

import jax
import numpy as np
import optax

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve

WIDTH, OUTPUTS, SAMPLES, DEPTH = 128, 10, 1000, 4
STEPS = 100


def pose():
    """The source's 100 steps as a flow, and the flow of one layer, 0.4 times as fast."""
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = np.asarray(jax.random.normal(keys[0], (WIDTH, SAMPLES)))
    noise, teacher = (jax.random.normal(keys[k], (OUTPUTS, size)) for k, size in ((1, SAMPLES), (2, WIDTH)))
    cost = sf.MeanSquaredError(inputs, np.asarray(teacher @ inputs + noise))
    # the output's factor (128^3 10)^(-1/2) as a share of every layer: the flow is the same, its time runs otherwise
    share = (WIDTH**3 * OUTPUTS) ** (-1 / 2 / DEPTH)
    start = sf.orthogonal(keys[3], depth=DEPTH, width=WIDTH, shape=cost.shape, scale=share * WIDTH**0.5)
    values = np.linalg.svd(inputs, compute_uv=False)
    rate = OUTPUTS / (2 * DEPTH * values[0] ** 2)  # the source's, for half the sum of squares: ours is a mean
    step = share**2 * SAMPLES / 2 * rate
    deep = sf.gradient_flow(cost, start, save_at=step * np.arange(STEPS + 1), rtol=1e-4)
    descent = sf.gradient_descent(cost, start, optax.sgd(step), num_steps=STEPS)
    convex = sf.DeepLinearNetwork([start.end_to_end()])
    times = DEPTH / OUTPUTS * SAMPLES / 2 * rate * np.arange(STEPS + 1)
    shallow = sf.gradient_flow(cost, convex, save_at=times, rtol=1e-6)
    return (
        {"rate": rate, "step": step, "condition": values[0] / values[-1]},
        deep,
        descent,
        shallow,
        cost(minimum(cost)),
    )


def minimum(cost):
    """The least-squares solution, to which the flow of one layer runs."""
    run = sf.gradient_flow(cost, sf.DeepLinearNetwork([np.zeros(cost.shape)]), gradient_tolerance=1e-10)
    return run.end_to_end[-1]


def judge(posed):
    """Both reach the minimum, at which speeds, and how the samples are conditioned."""
    samples, *runs, floor = posed
    deep, descent, shallow = (run.train_cost - floor for run in runs)
    rates = [np.log(excess[10] / excess[30]) / 20 for excess in (deep, shallow)]
    sharpness = float(sf.observables.REGISTRY["sharpness"](runs[0].cost, runs[0].network))
    plateaus = len(runs[0].saddles(stationary_points=False))
    return [
        Number.near("condition number of the samples", 2.0245, samples["condition"], within=0.1),
        Number.near("the source's learning rate, by its rule", 7.016e-4, samples["rate"], within=0.1),
        Number.at_most(
            "excess cost at step 100 over that at 0, four layers", 1e-3, deep[-1] / deep[0], origin="stated"
        ),
        Number.at_most("the same, one layer", 1e-3, shallow[-1] / shallow[0], origin="stated"),
        Number.at_most(
            "excess cost at step 100 over that at 0, by the source's steps",
            0.1,
            descent[-1] / descent[0],
            origin="derived",
        ),
        Number.at_least(
            "the source's step times the sharpness at the end of the flow, over 2: its steps oscillate",
            1.0,
            samples["step"] * sharpness / 2,
            origin="derived",
        ),
        Number.near("plateaus of four layers", 0, plateaus, absolute=0.5, origin="stated"),
        Number.at_least(
            "rate of the excess, four layers over one (1 only for infinite width)",
            1.0,
            rates[0] / rates[1],
            origin="derived",
        ),
    ]


def draw(axes, posed):
    """Excess costs against steps."""
    _, *runs, floor = posed
    names = ("four layers, flow", "by the source's steps", "one layer, flow")
    for run, name, style, offset in zip(runs, names, ("-", ":", "--"), ((-5, -6), (-5, 12), (6, 8)), strict=True):
        (line,) = axes.semilogy(run.train_cost - floor, style)
        name_curve(
            line, name, at=0.75 if style == ":" else 0.4, offset=offset, ha="left" if offset[0] > 0 else "right"
        )
    axes.set(xlabel="the source's steps", ylabel="cost above its minimum", ylim=(1e-9, None))


CASE = Case(
    name="A17",
    title="a wide network from an orthogonal start",
    source="HongruZhao/deep_linear_network, commit 62593c8",
    paper="after Hu, Xiao and Pennington, ICLR 2020, arXiv 2001.05992",
    computed=(
        "Widths 128-128-128-128-10, orthogonal layers, outputs scaled. Training converges without a plateau, like "
        "the convex problem of a single layer beside it. At this width it is nearly twice as fast, because the "
        "layers grow. The source's learning rate, which suits infinite width, is at the edge of stability here, "
        "and its steps oscillate."
    ),
    source_cost="100 steps of 7e-4",
    pose=pose,
    judge=judge,
    draw=draw,
    in_law=True,
)
