"""A13: deep matrix factorisation from multiples of the identity, whose negative eigenvalues are out of reach."""

import numpy as np
import optax

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve

EIGENVALUES = (-20.0, -10.0, 8.0, 4.0)


def pose():
    """Flows to t = 50: equal layers in the eigenbasis and in the source's basis; a smaller first layer."""
    basis = np.array([[1, 1, 1, 0], [1, -1, 0, 1], [1, 0, -1, -1], [0, 1, -1, 1]]) / np.sqrt(3)
    costs = [sf.MeanSquaredError.teacher(frame @ np.diag(EIGENVALUES) @ frame.T) for frame in (np.eye(4), basis)]
    equal = sf.DeepLinearNetwork([0.1 * np.eye(4)] * 3)
    unequal = sf.DeepLinearNetwork([0.05 * np.eye(4), 0.1 * np.eye(4), 0.1 * np.eye(4)])
    steps = sf.gradient_descent(costs[1], equal, optax.sgd(0.005), num_steps=10_000)  # the source's, of half our cost
    return {
        "equal layers": sf.gradient_flow(costs[0], equal, save_at=np.linspace(0, 50, 5001)),
        "equal layers, source's basis": sf.gradient_flow(costs[1], equal, t1=50.0),
        "first layer smaller": sf.gradient_flow(costs[0], unequal, save_at=np.linspace(0, 50, 5001)),
        "the source's steps": steps,
    }


def judge(runs):
    """The costs at t = 50, the mode of eigenvalue -20 against its closed form, and what rounding would decide."""
    equal, turned, unequal, steps = runs.values()
    at = np.searchsorted(equal.time, 1.0)
    # p' = 6 p^(4/3) (lambda - p), with p far below |lambda|
    decayed = (0.1**-1 + 2 * 20 * equal.time[at]) ** -3
    return [
        Number.near("cost at t = 50, equal layers", 500.0, equal.train_cost[-1], within=1e-4, origin="derived"),
        Number.near(
            "mode of -20 at t = 1, equal layers", decayed, equal.end_to_end[at, 0, 0], within=1e-2, origin="derived"
        ),
        Number.near(
            'in the source\'s basis they end "below_resolution" (1) at the saddle of rank 1, where rounding grows',
            1,
            turned.stop_reason == "below_resolution" and turned.rank[-1] == 1,
            absolute=0.5,
            origin="derived",
        ),
        Number.at_most(
            "cost of the source's own steps there at t = 50: they leave",
            400.0,
            steps.train_cost[-1],
            origin="derived",
        ),
        Number.at_most("cost at t = 50, first layer smaller", 1e-4, unequal.train_cost[-1], origin="derived"),
    ]


def draw(axes, runs):
    """Eigenvalues against time."""
    for name, colour, offset in (("equal layers", "C0", (0, -7)), ("first layer smaller", "C1", (0, 6))):
        run = runs[name]
        lines = axes.plot(run.time, np.diagonal(run.end_to_end, axis1=1, axis2=2), color=colour)
        name_curve(lines[0], name, at=0.03, offset=offset)
    for value in EIGENVALUES:
        axes.axhline(value, color="C2", lw=0.7, ls=":")
    axes.set(xlim=(0, 4), xlabel="time (half of learning rate x steps)", ylabel="eigenvalues of A")


CASE = Case(
    name="A13",
    title="deep matrix factorisation from the identity",
    source="buozyte/gd_for_deep_matrix_factor, commit d10546f, test.m",
    paper="after Chou et al., arXiv 2011.13772",
    computed=(
        "Three layers and a symmetric 4 x 4 target with eigenvalues -20, -10, 8, 4 take 10,000 steps of 0.01 on "
        "half the squared error. The source draws the eigenvalues and prints none. Derived here: from equal "
        "layers the negative eigenvalues are never learned, from unequal ones they are. In a basis other than the "
        "target's eigenvectors rounding decides when the run leaves the saddle of rank 1: the flow ends there and "
        "says so, gradient descent goes on."
    ),
    source_cost="10,000 steps per run",
    pose=pose,
    judge=judge,
    draw=draw,
)
