"""B08: deep matrix factorisation finds a matrix of rank 5 from 2,000 Gaussian measurements."""

import jax
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve

SIZE, RANK, MEASURED, START = 100, 5, 2000, 1e-3  # START: of the product of the layers' entries


def pose():
    """Depths 2 and 3 on 2,000 measurements of a matrix of rank 5 and norm 100."""
    keys = jax.random.split(jax.random.key(0), 4)
    target = np.asarray(jax.random.normal(keys[0], (SIZE, RANK)) @ jax.random.normal(keys[1], (RANK, SIZE)))
    target = 100 * target / np.linalg.norm(target)
    cost = sf.LinearMeasurements.sensing(keys[2], target, num_measurements=MEASURED)
    end = 1e-6 * SIZE**2  # the source's matrices are these over the size
    runs = {}
    for depth in (2, 3):
        variance = START ** (2 / depth) / SIZE
        start = sf.gaussian(keys[3], depth=depth, width=SIZE, shape=(SIZE, SIZE), variance=variance)
        distance = {"distance": sf.observables.Distance(target)}
        runs[depth] = sf.gradient_flow(cost, start, rtol=1e-3, target_cost=end, observables=distance)
    return runs


def errors(run):
    """The error of A over the size of the target, along a run."""
    return run.observables["distance"] / 100


def judge(runs):
    """Errors and ranks at the source's train loss."""
    ends = {depth: errors(run)[-1] for depth, run in runs.items()}
    return [
        Number.near("rank, depth 3", RANK, runs[3].rank[-1], absolute=0.5, origin="stated"),
        Number.at_most("error of A over its size, depth 3", 1e-2, ends[3], origin="stated"),
        Number.at_most("the same, depth 3 over depth 2", 1.0, ends[3] / ends[2], origin="stated"),
    ]


def draw(axes, runs):
    """Error of the matrix against time."""
    for depth, run in runs.items():
        (line,) = axes.semilogy(run.time, errors(run))
        name_curve(line, f"depth {depth}", at=0.9, offset=(0, 7))
    axes.set(xlabel="time", ylabel="error of A over its size")


CASE = Case(
    name="B08",
    title="deep matrix factorisation from Gaussian measurements",
    source="roosephu/deep_matrix_factorization, commit 3ad61e3",
    paper="Arora et al., NeurIPS 2019, arXiv 1905.13655",
    computed="A 100 x 100 matrix of rank 5 from 2,000 Gaussian measurements: depth 3 recovers it, depth 2 does not.",
    source_cost="up to 1,000,000 steps of 1e-3",
    pose=pose,
    judge=judge,
    draw=draw,
    smaller="depths 2 and 3 from one size of start.",
    in_law=True,
)
