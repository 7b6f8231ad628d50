"""A11: a single linear neuron, from unbalanced layers."""

import jax.numpy as jnp
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve

DELTAS = (-4, -2, -1, 0, 1, 2, 4)  # a^2 - |w|^2
INPUT = np.array([0.5, 1.0])
LEAST = 1.1 * INPUT / (INPUT @ INPUT)  # the interpolating solution of least norm
START = 0.5 * (0.6 * np.array([1.0, -0.5]) + 0.4 * INPUT)


def pose():
    """Seven starts with the same product a w, on one sample."""
    cost = sf.MeanSquaredError(INPUT[:, None], np.array([[1.1]]))
    runs = {}
    for delta in DELTAS:
        norm = np.linalg.norm(START)
        a = np.sqrt(delta / 2 + np.sqrt(delta**2 / 4 + norm**2))
        neuron = sf.DeepLinearNetwork([jnp.asarray(START[None] / a), jnp.full((1, 1), a)])
        runs[delta] = sf.gradient_flow(cost, neuron, rtol=1e-8, gradient_tolerance=1e-8, save_networks=True)
    return runs


def predicted(delta):
    """Where the flow ends, by the paper: the distance along the solutions from that of least norm."""
    norm, null = np.linalg.norm(START), np.array([-LEAST[1], LEAST[0]]) / np.linalg.norm(LEAST)
    k = np.sqrt(np.sqrt(norm**2 + delta**2 / 4) - delta / 2) * START @ null / norm
    half = (k**2 + delta) / 2
    return k * np.sqrt(half + np.sqrt(half**2 + LEAST @ LEAST))


def judge(runs):
    """Ends along the line of solutions; what is conserved."""
    null = np.array([-LEAST[1], LEAST[0]]) / np.linalg.norm(LEAST)
    ends = [
        Number.near(
            f"end along the solutions, delta = {delta}",
            predicted(delta),
            run.end_to_end[-1, 0] @ null,
            within=1e-5,
            origin="stated",
        )
        for delta, run in runs.items()
    ]
    drift = max(float(np.abs(sf.balancedness(run.network)[0] - delta).max()) for delta, run in runs.items())
    return [*ends, Number.at_most("drift of a^2 - |w|^2", 1e-6, drift, origin="stated")]


def draw(axes, runs):
    """Paths of a w to the line of solutions."""
    for place, (delta, run) in enumerate(runs.items()):
        x, y = run.end_to_end[:, 0].T
        (line,) = axes.plot(x, y, color=f"C{place % 6}")
        offset = {4: (-3, 5), 2: (1, 8)}.get(delta, (4, 4))
        name_curve(line, f"{delta:+d}" if delta else "0", offset=offset, ha="right" if delta == 4 else "left")
    x = np.array([0.2, 1.2])
    axes.plot(x, (1.1 - 0.5 * x) / 1.0, color="C4", lw=0.7, ls=":")
    axes.plot(*START, "o", ms=4, color="C4")
    axes.set(
        xlabel="first entry of a w",
        ylabel="second entry",
        title="delta = a² - |w|² at the paths' ends; dotted: solutions",
    )


CASE = Case(
    name="A11",
    title="one neuron from unbalanced layers",
    source="allanraventos/getrichquick, commit 5a3c250, single-neuron/Single_Neuron.ipynb",
    paper="Kunin et al., NeurIPS 2024, arXiv 2406.06158",
    computed=(
        "Starts with the same product a w and different a^2 - |w|^2 run to different solutions of one equation, "
        "and a formula of the paper says to which. (The notebook's two-layer ReLU grid is not repeated.)"
    ),
    source_cost="seconds, by scipy's solve_ivp",
    pose=pose,
    judge=judge,
    draw=draw,
)
