"""B02: sparse recovery by a diagonal network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy

import saddleflow as sf
from saddleflow.gallery.case import Case, Number

SIZE, SAMPLES, SPARSITY, SCALE = 30, 20, 3, 0.1
RATES = (1e-2, 0.1, 0.2)


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
    descents = {}
    for rate in RATES:
        half = optax.sgd(rate / 2)  # the source's gradient is that of half our cost
        descents["all", rate] = sf.gradient_descent(objective, start, half, num_steps=100_000)
        descents["one", rate] = sf.gradient_descent(
            objective, start, half, num_steps=100_000, batch_size=1, key=jax.random.key(0)
        )
    run = sf.gradient_flow(
        objective, start, observables={"beta": lambda _, model: model["u"] * model["v"]}, gradient_tolerance=1e-8
    )
    return run, descents, inputs, truth


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
    run, descents, inputs, truth = posed
    end = run.observables["beta"][-1]
    small, large = RATES[0], RATES[-1]
    test = {key: found.test_cost[-1] for key, found in descents.items()}
    near = descents["all", small].model
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
        Number.at_most(
            "distance of the end of gradient descent at rate 0.01 from the flow's",
            1e-3,
            np.linalg.norm(near["u"] * near["v"] - end),
            origin="stated",
        ),
        Number.at_least(
            "test loss, all samples: at rate 0.2 over 0.01",
            1.0,
            test["all", large] / test["all", small],
            origin="stated",
        ),
        Number.at_most(
            "test loss, one sample a step: at rate 0.2 over 0.01",
            0.1,
            test["one", large] / test["one", small],
            origin="stated",
        ),
    ]


def draw(axes, posed):
    """Coefficients against time."""
    run, _, _, truth = posed
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
    smaller="three of the source's 30 rates.",
)
