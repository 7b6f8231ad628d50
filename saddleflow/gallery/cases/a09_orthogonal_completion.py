"""A09: deep networks from small orthogonal layers, of which few directions move."""

import jax
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve

SIZE, RANK, DEPTH, SCALE = 100, 5, 3, 1e-2


def pose():
    """Factorisation of a matrix of rank 5, and its completion from 20 % of the entries."""
    keys = jax.random.split(jax.random.key(0), 4)
    left, right = (jax.random.normal(key, (SIZE, RANK)) / RANK**0.25 for key in keys[:2])
    target = np.asarray(left @ right.T)
    observed = np.asarray(jax.random.uniform(keys[2], target.shape) < 0.2)
    start = sf.orthogonal(keys[3], depth=DEPTH, width=SIZE, shape=target.shape, scale=SCALE)
    whole = sf.gradient_flow(sf.MatrixCompletion(target, np.ones_like(observed)), start, rtol=1e-4)
    part = sf.gradient_flow(sf.MatrixCompletion(target, observed), start, rtol=1e-3)
    return whole, part


def judge(posed):
    """How many directions of a layer move, and what is recovered."""
    whole, part = posed
    numbers = []
    for number, layer in enumerate(whole.network.layers, start=1):
        values = np.sort(np.linalg.svd(np.asarray(layer), compute_uv=False))
        still = values[RANK : SIZE - RANK]
        numbers.append(
            Number.at_most(
                f"spread of the d - 2 r middle singular values of layer {number}",
                1e-4,
                (still[-1] - still[0]) / still[-1],
                origin="stated",
            )
        )
    return [
        *numbers,
        Number.near("completion: rank at the end", RANK, part.rank[-1], absolute=0.5, origin="stated"),
        Number.at_most("completion: error of the unseen entries", 1e-5, part.test_cost[-1], origin="stated"),
    ]


def draw(axes, posed):
    """Costs of the completion against time."""
    _, run = posed
    for values, name, colour, offset in (
        (run.train_cost, "train", "C0", (-5, -8)),
        (run.test_cost, "test", "C1", (5, 4)),
    ):
        (line,) = axes.semilogy(run.time, values, color=colour)
        name_curve(line, name, at=0.6, offset=offset, ha="right" if offset[0] < 0 else "left")
    axes.set(xlabel="time (half of learning rate x steps)", ylabel="cost", title="100 x 100 of rank 5, 20 % observed")


CASE = Case(
    name="A09",
    title="few directions move from an orthogonal start",
    source="soominkwon/comp-deep-nets, commit 4349b87",
    paper="Kwon et al., AISTATS 2024, arXiv 2311.05061",
    computed=(
        "Three orthogonal layers of scale 1e-2 learn a 100 x 100 matrix of rank r = 5. All but 2 r singular "
        "values of a layer stay equal to each other, so that a compressed network does the same; the matrix is "
        "recovered from 20 % of its entries."
    ),
    source_cost="25,000 to 50,000 steps",
    pose=pose,
    judge=judge,
    draw=draw,
    in_law=True,
)
