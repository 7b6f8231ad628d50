"""B05: deep linear classifiers on separable data, whose direction tends to the largest margin."""

import jax
import numpy as np
import scipy

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve

SIZE, SAMPLES, DEPTHS = 10, 40, (1, 2, 3)


def data():
    """Samples in ten dimensions that a direction separates, with their signs."""
    draw = np.random.default_rng(0)
    truth, inputs = draw.standard_normal(SIZE), draw.standard_normal((SIZE, SAMPLES))
    return inputs, np.sign(truth @ inputs)


def pose():
    """Logistic loss, depth 1 to 3, to t = 10^12 (or where the loss is too small to go on)."""
    inputs, labels = data()
    cost = sf.Logistic(labels, inputs=inputs)  # pyright: ignore[reportCallIssue]
    runs = {}
    for depth in DEPTHS:
        width = None if depth == 1 else 10
        start = sf.gaussian(jax.random.key(depth), depth=depth, width=width, shape=(1, SIZE), variance=1e-2)
        runs[depth] = sf.gradient_flow(cost, start, save_at=np.append(0, np.logspace(-1, 12, 131)))
    return runs


def margins(directions):
    """The least margin of unit vectors along each."""
    inputs, labels = data()
    lengths = np.linalg.norm(directions, axis=-1, keepdims=True)
    return np.min(labels * ((directions / lengths) @ inputs), axis=-1)


def largest_margin():
    """By the separating direction of least length: `min |a|^2` with `y a x >= 1`."""
    inputs, labels = data()
    bounds = {"type": "ineq", "fun": lambda a: labels * (a @ inputs) - 1, "jac": lambda a: (labels * inputs).T}
    guess = scipy.optimize.linprog(
        np.zeros(SIZE), A_ub=-(labels * inputs).T, b_ub=-np.ones(SAMPLES), bounds=[(None, None)] * SIZE
    )
    found = scipy.optimize.minimize(lambda a: a @ a, guess.x, jac=lambda a: 2 * a, constraints=bounds, method="SLSQP")
    return float(margins(found.x))


def judge(runs):
    """Margins at the end, and whether layers align."""
    best, numbers = largest_margin(), []
    for depth, run in runs.items():
        share = margins(run.end_to_end[:, 0])[-1] / best
        numbers.append(
            Number.near(f"margin at the end over the largest, L = {depth}", 1.0, share, within=5e-2, origin="stated")
        )
    layers = [np.linalg.svd(np.asarray(layer), compute_uv=False) for layer in runs[3].network.layers[:2]]
    second = max(values[1] / values[0] for values in layers)
    return [
        *numbers,
        Number.at_most("second singular value over the first of a layer, L = 3", 0.1, second, origin="stated"),
    ]


def draw(axes, runs):
    """Margins against time."""
    axes.set(xlim=(1, 1e12), ylim=(0, 1.1), xlabel="time", ylabel="margin over the largest")
    places = {1: (0.5, (4, -8), "left"), 2: (0.08, (4, -4), "left"), 3: (0.05, (-5, 4), "right")}
    for depth, run in runs.items():
        (line,) = axes.semilogx(run.time[1:], margins(run.end_to_end[1:, 0]) / largest_margin())
        at, offset, side = places[depth]
        name_curve(line, f"L = {depth}", at=at, offset=offset, ha=side)
    axes.axhline(1, color="C4", lw=0.7, ls=":")


CASE = Case(
    name="B05",
    title="the margin of deep linear classifiers",
    source="Op-2005/deep-linear-mirror-bias, commit a3d41ab",
    paper="after Ji and Telgarsky, ICLR 2019, arXiv 1810.02032",
    computed=(
        "Linear networks of depth 1 to 3 on separable data: with the logistic loss their direction tends to that "
        "of the largest margin, and their layers to rank one. The source compares mirror maps; the Euclidean one, "
        "which is the flow, is repeated."
    ),
    source_cost="not said",
    pose=pose,
    judge=judge,
    draw=draw,
    smaller="random data in ten dimensions.",
    in_law=True,
)
