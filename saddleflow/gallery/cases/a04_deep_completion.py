"""A04: deep matrix factorisation completes a matrix from few entries."""

import jax
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve

SIZE, RANK, OBSERVED, START = 100, 5, 2000, 1e-3  # START: of the product of the layers' entries


def pose():
    """Depths 2 and 3 on 2,000 of 10,000 entries of a matrix of rank 5 and norm 100."""
    keys = jax.random.split(jax.random.key(0), 4)
    target = np.asarray(jax.random.normal(keys[0], (SIZE, RANK)) @ jax.random.normal(keys[1], (RANK, SIZE)))
    target = 100 * target / np.linalg.norm(target)
    observed = np.asarray(jax.random.permutation(keys[2], SIZE**2) < OBSERVED).reshape(SIZE, SIZE)
    cost = sf.MatrixCompletion(target, observed)
    runs = {}
    for depth in (2, 3):
        variance = START ** (2 / depth) / SIZE
        start = sf.gaussian(keys[3], depth=depth, width=SIZE, shape=(SIZE, SIZE), variance=variance)
        runs[depth] = sf.gradient_flow(cost, start, rtol=1e-3, target_cost=2e-6)
    return runs


def judge(runs):
    """Errors of the whole matrix, and ranks."""
    errors = {depth: np.sqrt(run.test_cost[-1]) for depth, run in runs.items()}
    return [
        Number.near("rank, depth 3", RANK, runs[3].rank[-1], absolute=0.5, origin="stated"),
        Number.at_most(
            "error of the unseen entries (RMS, of entries of size 1), depth 3", 1e-2, errors[3], origin="stated"
        ),
        Number.at_most("the same, depth 3 over depth 2", 1.0, errors[3] / errors[2], origin="stated"),
    ]


def draw(axes, runs):
    """Error of the unseen entries against time."""
    for depth, run in runs.items():
        (line,) = axes.loglog(run.time[1:], np.sqrt(run.test_cost[1:]))
        name_curve(line, f"depth {depth}", at=0.98)
    axes.set(xlabel="time (half of learning rate x steps)", ylabel="error of the unseen entries")


CASE = Case(
    name="A04",
    title="deep matrix factorisation",
    source="roosephu/deep_matrix_factorization, commit 3ad61e3",
    paper="Arora et al., NeurIPS 2019, arXiv 1905.13655",
    computed="A 100 x 100 matrix of rank 5 from 2,000 of its entries: depth 3 recovers it, better than depth 2.",
    source_cost="up to 1,000,000 steps of 1e-3",
    pose=pose,
    judge=judge,
    draw=draw,
    smaller="depths 2 and 3 from one size of start.",
    in_law=True,
)
