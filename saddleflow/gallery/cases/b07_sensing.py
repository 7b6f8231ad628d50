"""B07: matrix sensing from small and large starts."""

import jax
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve

SIZE, RANK, MEASUREMENTS, SCALES = 30, 2, 400, (1.0, 1e-1, 1e-3)


def pose():
    """Gaussian measurements of a product of unit columns, from starts alpha (1 + N)."""
    keys = jax.random.split(jax.random.key(0), 4)
    left, right = (np.asarray(jax.random.normal(key, (SIZE, RANK))) for key in keys[:2])
    target = (left / np.linalg.norm(left, axis=0)) @ (right / np.linalg.norm(right, axis=0)).T
    cost = sf.LinearMeasurements.sensing(keys[2], target, num_measurements=MEASUREMENTS)
    observables = {"error": lambda _, network: np.sum((network.end_to_end() - target) ** 2)}
    runs = {}
    for scale in SCALES:
        start = sf.identity(keys[3], depth=2, width=SIZE, shape=(SIZE, SIZE), scale=scale, noise=1.0)
        runs[scale] = sf.gradient_flow(cost, start, rtol=1e-4, observables=observables)
    return runs, np.sum(target**2)


def judge(posed):
    """Errors of the matrix where the measurements are fitted."""
    runs, size = posed
    errors = {scale: run.observables["error"][-1] / size for scale, run in runs.items()}
    return [
        Number.near(
            "flows that fit all measurements",
            len(SCALES),
            sum(run.stop_reason == "converged" for run in runs.values()),
            absolute=0.5,
            origin="stated",
        ),
        Number.at_most("error of the matrix over its square, alpha = 1e-3", 1e-4, errors[1e-3], origin="stated"),
        Number.near("rank, alpha = 1e-3", RANK, runs[1e-3].rank[-1], absolute=0.5, origin="stated"),
        Number.at_least("error of the matrix over its square, alpha = 1", 1.0, errors[1.0], origin="stated"),
    ]


def draw(axes, posed):
    """Errors of the matrix against time."""
    runs, size = posed
    for scale, run in runs.items():
        (line,) = axes.loglog(run.time[1:], run.observables["error"][1:] / size)
        name_curve(line, f"alpha = {scale:g}", at=0.75, offset=(4, 8))
    axes.set(xlabel="time", ylabel="error of the matrix over its square")


CASE = Case(
    name="B07",
    title="matrix sensing from small and large starts",
    source="rhshi/matrix-sensing, commit 234e1d3",
    paper="after Li, Ma and Zhang, COLT 2018, arXiv 1712.09203",
    computed=(
        "Two factors started at alpha (1 + N) fit linear measurements of a matrix of low rank; only from a small "
        "start do they find that matrix."
    ),
    source_cost="10,000 steps of 0.0025",
    pose=pose,
    judge=judge,
    draw=draw,
    smaller="30 x 30 of rank 2 in place of 100 x 100 of rank 5.",
    in_law=True,
)
