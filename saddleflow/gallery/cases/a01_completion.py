"""A01: matrix completion of pc-saddles, whose masked matrix is input and target at once."""

from importlib.resources import files

import jax
import jax.numpy as jnp
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.gallery.drawing import name_curve, name_point


class MaskedMean(sf.Cost):
    """The mean over all entries of `(mask * (A X - Y))^2`, with the masked matrix as X and Y, a sample a column."""

    mask: jax.Array
    samples: jax.Array

    @property
    def shape(self):
        """Shape of A."""
        return self.samples.shape

    @property
    def has_test(self):
        """There is no test set."""
        return False

    def __call__(self, matrix):
        """The source's loss."""
        return (self.mask * (matrix @ self.samples - self.samples) ** 2).mean()

    def test(self, matrix):
        """There is none."""
        raise ValueError("no test set")


def pose():
    """Eight flows of the source's task, from starts of its law."""
    with (files("saddleflow.gallery") / "data" / "pc_saddles_task.npz").open("rb") as file:
        task = {name: jnp.asarray(values, float) for name, values in np.load(file).items()}
    cost = MaskedMean(task["mask"].T, (task["mask"] * task["target"]).T)
    starts = [
        sf.gaussian(jax.random.key(seed), depth=4, width=100, shape=(10, 10), variance=2.5e-5) for seed in range(8)
    ]
    return [sf.gradient_flow(cost, start, rtol=1e-4, target_cost=1e-2) for start in starts]


def judge(runs):
    """The plateaus, and the end."""
    first = [visit for run in runs for visit in run.saddles(stationary_points=False)]
    by_rank = {rank: [visit.cost for visit in first if visit.rank == rank] for rank in (1, 2)}
    times = [run.time[-1] for run in runs]
    return [
        Number.near("loss at the start", 3.445787, runs[0].train_cost[0], within=1e-6),
        Number.near("plateau of rank 1 (printed 1.0969 to 1.0946)", 1.0946, np.mean(by_rank[1]), within=5e-3),
        Number.near("plateau of rank 2 (printed .1263 to .1240)", 0.1254, np.mean(by_rank[2]), within=1e-2),
        Number.near(
            "runs that reach the loss 1e-2", 8, sum(run.stop_reason == "target_cost" for run in runs), absolute=0.5
        ),
        Number.near("time of the end, median of starts (lr x steps)", 930.0, np.median(times), within=0.5),
    ]


def draw(axes, runs):
    """Loss against time."""
    for run in runs:
        (line,) = axes.semilogy(run.time, run.train_cost, color="C0", lw=0.8)
    name_curve(line, "eight starts", at=0.1, offset=(0, 8))
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
        "A linear network of depth 4 and width 100 fits a masked 10 x 10 matrix of rank 3 from its own masked "
        "rows; the loss rests on plateaus. The task is the source's own (its seed 0), the starts are other draws "
        "of its law."
    ),
    source_cost="94,000 steps at 1e-2; 825 s on an L4 GPU together with a tanh and a ReLU run",
    pose=pose,
    judge=judge,
    draw=draw,
    in_law=True,
)
