"""B02: sparse recovery by a diagonal network."""

import jax.numpy as jnp
import numpy as np
import scipy

import saddleflow as sf
from saddleflow.gallery.case import Case, Number

SIZE, SAMPLES, SPARSITY, SCALE = 30, 20, 3, 0.1


def predict(model, x):
    """The linear predictor u v of a diagonal network."""
    return x @ (model["u"] * model["v"])


def pose():
    """The flow from the start u = sqrt(2) alpha, v = 0, on the source's own data, which numpy draws again."""
    draw = np.random.default_rng(seed=1234)
    truth = np.zeros(SIZE)
    truth[:SPARSITY] = draw.normal(0, 1, size=SPARSITY)
    inputs, test_inputs = (draw.multivariate_normal(np.zeros(SIZE), cov=np.eye(SIZE), size=SAMPLES) for _ in range(2))
    objective = sf.regression(predict, inputs, inputs @ truth, test_inputs, test_inputs @ truth)
    start = {"u": jnp.full(SIZE, SCALE * np.sqrt(2)), "v": jnp.zeros(SIZE)}
    run = sf.gradient_flow(
        objective, start, observables={"beta": lambda _, model: model["u"] * model["v"]}, gradient_tolerance=1e-8
    )
    return run, inputs, truth


def least_potential(inputs, targets):
    """The interpolating solution of least hyperbolic entropy, `alpha^2 sinh(X^T nu)`, by its convex dual."""
    found = scipy.optimize.minimize(
        lambda nu: SCALE**2 * np.cosh(inputs.T @ nu).sum() - targets @ nu,
        np.zeros(SAMPLES),
        jac=lambda nu: inputs @ (SCALE**2 * np.sinh(inputs.T @ nu)) - targets,
        hess=lambda nu: inputs @ (SCALE**2 * np.cosh(inputs.T @ nu)[:, None] * inputs.T),
        method="trust-exact",
        options={"gtol": 1e-10},
    )
    return SCALE**2 * np.sinh(inputs.T @ found.x)


def judge(posed):
    """The end against the implicit bias, and against the sparse truth."""
    run, inputs, truth = posed
    end = run.observables["beta"][-1]
    selected = least_potential(inputs, inputs @ truth)
    return [
        Number.at_most(
            "distance of the end from the solution that the potential selects",
            1e-4,
            np.abs(end - selected).max(),
            origin="stated",
        ),
        Number.at_most(
            "distance from the sparse truth, over its norm",
            0.1,
            np.linalg.norm(end - truth) / np.linalg.norm(truth),
            origin="stated",
        ),
        Number.at_most(
            "|u^2 - v^2 - 2 alpha^2| at the end",
            1e-6,
            np.abs(run.model["u"] ** 2 - run.model["v"] ** 2 - 2 * SCALE**2).max(),
            origin="stated",
        ),
    ]


def draw(axes, posed):
    """Coefficients against time."""
    run, _, truth = posed
    for j, values in enumerate(run.observables["beta"].T):
        axes.semilogx(run.time[1:], values[1:], color="C0" if j < SPARSITY else "C4", lw=1.3 if j < SPARSITY else 0.6)
    for value in truth[:SPARSITY]:
        axes.axhline(value, color="C1", lw=0.7, ls=":")
    axes.set(
        xlabel="time",
        ylabel="coefficients",
        title="blue: the three true ones; dotted: their values",
        xlim=(0.1, None),
    )


CASE = Case(
    name="B02",
    title="sparse recovery by a diagonal network",
    source="alexandremr01/sgd-over-dlns, commit ea6e924",
    paper="Even et al., NeurIPS 2023, arXiv 2302.08982",
    computed=(
        "Thirty coefficients, three of them not zero, from twenty samples; the flow is the limit of small steps "
        "of the source's scan. Its end has a closed description."
    ),
    source_cost="100,000 steps for each of 60 rates and batch sizes",
    pose=pose,
    judge=judge,
    draw=draw,
    smaller="the flow alone, not the scan of rates.",
)
