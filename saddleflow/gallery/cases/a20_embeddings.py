"""A20: word embeddings as matrix factorisation, W W^T towards M*."""

import jax
import jax.numpy as jnp
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number, first_time
from saddleflow.plotting import name_curve

WORDS, DIMENSION, START = 60, 8, 1e-5
EIGENVALUES = np.concatenate([2.0 ** -np.arange(0, 10, 0.5), -(2.0 ** -np.arange(0.5, 10.5, 0.5)), np.zeros(20)])


def pose():
    """One flow of tied factors, for a random symmetric matrix of given spectrum."""
    keys = jax.random.split(jax.random.key(0))
    basis = np.linalg.qr(jax.random.normal(keys[0], (WORDS, WORDS)))[0]
    target = basis @ np.diag(EIGENVALUES) @ basis.T
    # the sum of squares: ours is a mean over columns
    objective = sf.Objective(sf.SquaredError(np.sqrt(WORDS) * target), lambda words: np.sqrt(WORDS) * words @ words.T)
    words = START / DIMENSION**0.5 * jax.random.normal(keys[1], (WORDS, DIMENSION))
    strengths = {"modes": lambda _, words: jnp.einsum("wk,wv,vk->k", basis, words @ words.T, basis)}
    return sf.gradient_flow(objective, words, observables=strengths, rtol=1e-5, saves_per_step=4), basis


def judge(posed):
    """The paper's closed form of each mode, `s = l / (1 + (l / s0 - 1) exp(-8 l t))`, and the end."""
    run, _ = posed
    modes = run.observables["modes"]
    numbers = []
    for k in range(4):
        predicted = np.log(EIGENVALUES[k] / modes[0, k] - 1) / (8 * EIGENVALUES[k])
        numbers.append(
            Number.near(
                f"time of mode {k + 1}, of lambda = {EIGENVALUES[k]:.3g}",
                predicted,
                first_time(run.time, modes[:, k], EIGENVALUES[k] / 2),
                within=5e-2,
                origin="stated",
            )
        )
    learned = np.sort(EIGENVALUES)[::-1][:DIMENSION]
    return [
        *numbers,
        Number.near(
            "loss at the end: all but the 8 largest eigenvalues",
            np.sum(EIGENVALUES**2) - np.sum(learned**2),
            run.train_cost[-1],
            within=1e-3,
            origin="stated",
        ),
    ]


def draw(axes, posed):
    """Modes against time."""
    run, _ = posed
    for k in range(DIMENSION):
        (line,) = axes.semilogx(run.time, run.observables["modes"][:, k], color="C0")
        end = EIGENVALUES[k] / (
            1 + (EIGENVALUES[k] / run.observables["modes"][0, k] - 1) * np.exp(-8 * EIGENVALUES[k] * run.time)
        )
        (theory,) = axes.semilogx(run.time, end, ":", color="C1")
        if k == 0:
            name_curve(line, "flow", at=0.5, offset=(0, 7))
            name_curve(theory, "closed form", at=0.5, offset=(30, 7))
    axes.set(xlabel="time", ylabel="strength of a mode in W Wᵀ", xlim=(0.3, 200))


CASE = Case(
    name="A20",
    title="word embeddings, tied factors",
    source="dkarkada/qwem, commit a4997fc",
    paper="Karkada et al., NeurIPS 2025, arXiv 2502.09863",
    computed=(
        "Quadratic word embeddings are W W^T fitted to a matrix of co-occurrences; from small starts its "
        "eigenvectors are learned one after another, by a closed form."
    ),
    source_cost="300,000 mini-batch steps, 16 GB of GPU memory",
    pose=pose,
    judge=judge,
    draw=draw,
    smaller=(
        "60 words in 8 dimensions in place of 10,000 in 300, a random matrix in place of a corpus, no mini-batches."
    ),
    in_law=True,
)
