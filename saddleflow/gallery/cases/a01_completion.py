"""A01: matrix completion of pc-saddles, whose masked matrix is input and target at once."""

from importlib.resources import files

import jax
import jax.numpy as jnp
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve, name_point

LINEAR, TANH = "linear", "tanh"


def pose():
    """The source's task from starts of its law: linear networks, and one with tanh between the layers."""
    with (files("saddleflow.gallery") / "data" / "pc_saddles_task.npz").open("rb") as file:
        task = {name: np.asarray(values, float) for name, values in np.load(file).items()}
    observed, samples = task["mask"].T > 0, (task["mask"] * task["target"]).T
    share = observed.mean()  # the source's loss is a mean over all entries
    linear = share * sf.LinearMeasurements.masked(samples, samples, observed)

    def outputs(network):
        hidden = samples
        for layer in network.layers[:-1]:
            hidden = jnp.tanh(layer @ hidden)
        return network.layers[-1] @ hidden

    tanh = sf.Objective(share * sf.MatrixCompletion(samples, observed), outputs)
    starts = [
        sf.gaussian(jax.random.key(seed), depth=4, width=100, shape=(10, 10), variance=2.5e-5) for seed in range(8)
    ]
    return {
        LINEAR: [sf.gradient_flow(linear, start, rtol=1e-4, target_cost=1e-2) for start in starts],
        TANH: [sf.gradient_flow(tanh, start, rtol=1e-4, target_cost=1e-2) for start in starts[:2]],
    }


def judge(runs):
    """The plateaus, and the times of the ends."""
    linear, tanh = runs[LINEAR], runs[TANH]
    visits = [visit for run in linear for visit in run.saddles(stationary_points=False)]
    by_rank = {rank: np.mean([visit.cost for visit in visits if visit.rank == rank]) for rank in (1, 2)}
    times = {name: np.median([run.time[-1] for run in found]) for name, found in runs.items()}
    reached = sum(run.stop_reason == "target_cost" for run in linear + tanh)
    return [
        Number.near("loss at the start", 3.445787, linear[0].train_cost[0], within=1e-6),
        Number.near("plateau of rank 1 (printed 1.0969 to 1.0946)", 1.0946, by_rank[1], within=5e-3),
        Number.near("plateau of rank 2 (printed .1263 to .1240)", 0.1254, by_rank[2], within=1e-2),
        Number.near("runs that reach the loss 1e-2", 10, reached, absolute=0.5, origin="stated"),
        Number.near(
            "time of the end, linear, median (printed: before step 94,000)", 930.0, times[LINEAR], within=0.2
        ),
        Number.near("time of the end, tanh, median (printed: about step 25,000)", 250.0, times[TANH], within=0.2),
    ]


def draw(axes, runs):
    """Loss against time."""
    for run in runs[LINEAR]:
        (line,) = axes.semilogy(run.time, run.train_cost, color="C0", lw=0.8)
    name_curve(line, "linear, eight starts", at=0.8, offset=(-6, -8), ha="right")
    for run in runs[TANH]:
        (line,) = axes.semilogy(run.time, run.train_cost, color="C2", lw=0.8)
    name_curve(line, "tanh, two", at=0.9, offset=(6, 0))
    for height, text in ((3.4458, "3.4458"), (1.0946, "1.0946"), (0.1254, "0.1254")):
        axes.axhline(height, color="C1", lw=0.7, ls=":")
        name_point(axes, (axes.get_xlim()[1], height), f"printed {text}", "C1", (-2, 5), ha="right")
    axes.set(xlabel="time (learning rate x steps)", ylabel="loss", title="from saddle to saddle, 10 x 10 of rank 3")


CASE = Case(
    name="A01",
    title="matrix completion with masked inputs",
    source="francesco-innocenti/pc-saddles, commit 0614e3e, Matrix_Completion_Experiment.ipynb",
    paper="Innocenti et al., NeurIPS 2024, arXiv 2408.11979",
    computed=(
        "Networks of depth 4 and width 100, linear and with tanh, fit a masked 10 x 10 matrix of rank 3 from its "
        "own masked rows; the loss rests on plateaus. The task is the source's own (its seed 0), the starts are "
        "other draws of its law."
    ),
    source_cost="94,000 steps at 1e-2; 825 s on an L4 GPU together with a tanh and a ReLU run",
    pose=pose,
    judge=judge,
    draw=draw,
    in_law=True,
)
