"""A03: the largest learning rate of full-batch training, beside the sharpness at the end of the flow."""

import jax
import numpy as np
import optax

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve

RATES = (1e-4, 3.6e-3, 6e-3)  # of the source: smallest, largest that converges, smallest that does not


def pose():
    """One flow, and gradient descent at three rates; the source's loss is a mean over outputs, our cost their sum."""
    teacher = np.diag(50 / np.arange(1, 6))
    cost = sf.MeanSquaredError.random(jax.random.key(1), teacher=teacher, num_samples=500)
    start = sf.gaussian(jax.random.key(0), depth=4, width=50, shape=(5, 5), gamma=1.5)
    flow = sf.gradient_flow(cost, start, rtol=1e-4, observables=["sharpness"])
    descents = {
        rate: sf.gradient_descent(cost, start, optax.sgd(rate / 5), num_steps=26_000, max_saves=4000)
        for rate in RATES
    }
    return flow, descents


def judge(posed):
    """Which rates converge, and where 2 over the sharpness lies."""
    flow, descents = posed
    largest = 5 * 2 / flow.observables["sharpness"][-1]
    ends = {rate: run.train_cost[-1] / 5 for rate, run in descents.items()}
    return [
        Number.near("largest rate, 2 over the sharpness at the end of the flow", 3.6e-3, largest, within=5e-2),
        Number.at_most("cost after 26,000 steps of 1e-4", 1e-3, ends[1e-4], origin="stated"),
        Number.at_most("cost after 26,000 steps of 3.6e-3", 1e-3, ends[3.6e-3], origin="printed"),
        Number.at_least("cost after 26,000 steps of 6e-3", 1.0, ends[6e-3], origin="printed"),
    ]


def draw(axes, posed):
    """Costs against time."""
    flow, descents = posed
    axes.semilogy(5 * flow.time, flow.train_cost / 5, "--", color="C4")
    axes.set(xlim=(0, 2.5), ylim=(1e-4, 3e3), xlabel="time (learning rate x steps)", ylabel="cost")
    axes.set_title("dashed: the flow")
    for rate, run in descents.items():
        (line,) = axes.semilogy(5 * run.time, run.train_cost / 5, lw=0.8)
        at, offset = {1e-4: (0.97, (-8, 0)), 3.6e-3: (0.9, (0, -9)), 6e-3: (0.9, (0, 22))}[rate]
        name_curve(line, f"steps of {rate:g}", at=at, offset=offset, ha="right")


CASE = Case(
    name="A03",
    title="the largest learning rate of a deep linear network",
    source="seamus-fallows/Training-Dynamics-of-Deep-Learning, commit 5eb85fa0",
    paper="after Jacot et al., arXiv 2106.15933",
    computed=(
        "A scan of learning rates of full-batch training: 3.6e-3 converges and 6e-3 does not. The sharpness at "
        "the end of the flow predicts where the limit lies."
    ),
    source_cost="21 rates, up to 26,000 steps each",
    pose=pose,
    judge=judge,
    draw=draw,
    smaller="three of 21 rates, one width and exponent; teacher, samples and start are other draws.",
    in_law=True,
)
